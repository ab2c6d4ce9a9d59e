"""Drives a sprite host with the official Python SDK, step by step, and prints each step.

Needs SPRITES_API_URL and SPRITES_TOKEN. Exit status 0 when every step holds. `tests/conformance.rs` runs it.
"""

import asyncio
import io
import json
import os
import sys
import threading
import time
import traceback
from datetime import datetime, timezone

from sprites import AsyncSpritesClient, SpritesClient
from sprites.exceptions import (
    APIError,
    AuthenticationError,
    DirectoryNotEmptyError,
    ExitError,
    FileNotFoundError_,
    FilesystemError,
    IsADirectoryError_,
    NotADirectoryError_,
    NotFoundError,
    PermissionError_,
    SpriteError,
    TimeoutError as SpriteTimeout,
)
from sprites.policy import get_network_policy, update_network_policy
from sprites.session import kill_session, list_sessions
from sprites.types import ListOptions, NetworkPolicy, PolicyRule, URLSettings
from sprites.websocket import WSCommand

URL = os.environ["SPRITES_API_URL"]
TOKEN = os.environ["SPRITES_TOKEN"]
PREFIX = "py-"
PATIENCE = 20

client = SpritesClient(TOKEN, base_url=URL)
STEPS = []


def step(function):
    """Marks a step; they run in the order of the file."""
    STEPS.append(function)
    return function


def raises(kind, call):
    """The error of that kind that the call must raise."""
    try:
        result = call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} expected, but the call returned {result!r}")


def same(found, expected):
    assert found == expected, f"found {found!r}, expected {expected!r}"


class Watched(io.BytesIO):
    """A sink that tells when a text has come."""

    def __init__(self):
        super().__init__()
        self.changed = threading.Condition()

    def write(self, data):
        with self.changed:
            count = super().write(data)
            self.changed.notify_all()
            return count

    def expect(self, text):
        with self.changed:
            came = self.changed.wait_for(lambda: text in self.getvalue(), PATIENCE)
        assert came, f"{text!r} did not come, only {self.getvalue()!r}"


def sprite():
    return client.sprite(PREFIX + "main")


def sh(script, **options):
    return sprite().run("sh", "-c", script, capture_output=True, **options)


def out(script, **options):
    done = sh(script, **options)
    same((done.returncode, done.stderr), (0, b""))
    return done.stdout


def home():
    return sprite().filesystem("/home/sprite")


def until(holds):
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.02)


# Sprites


@step
def create():
    made = client.create_sprite(
        PREFIX + "main", url_settings=URLSettings(auth="public"), labels=["x"], wait_for_capacity=True, runtime="dev"
    )
    same((made.name, made.labels, made.url_settings.auth), (PREFIX + "main", ["x"], "public"))
    assert made.id and made.organization_name and made.created_at, vars(made)


@step
def create_a_name_again():
    error = raises(SpriteError, lambda: client.create_sprite(PREFIX + "main"))
    assert "already exists" in str(error), error


@step
def create_with_a_bad_name():
    for name in ["Upper", "a/b", "a.b", "..", "-a", ""]:
        raises(SpriteError, lambda: client.create_sprite(name))


@step
def get():
    found = client.get_sprite(PREFIX + "main")
    assert found.id and found.status in ("cold", "running"), vars(found)
    assert abs((datetime.now(timezone.utc) - found.created_at).total_seconds()) < 300, found.created_at


@step
def get_what_is_not_there():
    raises(NotFoundError, lambda: client.get_sprite(PREFIX + "none"))
    raises(NotFoundError, lambda: client.get_sprite("../" + PREFIX + "main"))


@step
def list_with_prefix_and_pages():
    names = [f"{PREFIX}page-{n:02}" for n in range(53)]
    for name in names:
        client.create_sprite(name)
    first = client.list_sprites(ListOptions(prefix=PREFIX + "page-", max_results=20, bulk_load=True))
    same(([s.name for s in first.sprites], first.has_more), (names[:20], True))
    second = client.list_sprites(
        ListOptions(prefix=PREFIX + "page-", max_results=20, continuation_token=first.next_continuation_token)
    )
    same([s.name for s in second.sprites], names[20:40])
    same([s.name for s in client.list_all_sprites(PREFIX + "page-")], names)
    assert first.cold + first.running >= 54, first
    for name in names:
        client.delete_sprite(name)
    same(client.list_all_sprites(PREFIX + "page-"), [])


@step
def update_labels_and_url_settings():
    same(sprite().update(labels=["y", "z"]).labels, ["y", "z"])
    same(client.get_sprite(PREFIX + "main").labels, ["y", "z"])
    same(sprite().update(url_settings=URLSettings(auth="sprite")).url_settings.auth, "sprite")
    same(client.get_sprite(PREFIX + "main").labels, ["y", "z"])


@step
def upgrade():
    sprite().upgrade()


@step
def a_wrong_token():
    stranger = SpritesClient("not-the-token", base_url=URL)
    raises(AuthenticationError, lambda: stranger.get_sprite(PREFIX + "main"))
    error = raises(APIError, lambda: stranger.sprite(PREFIX + "main").run("true"))
    same(error.status_code, 401)


# Programs


@step
def exec_output():
    same(sprite().command("echo", "hello", "world").output(), b"hello world\n")
    same(client.get_sprite(PREFIX + "main").status, "running")


@step
def exec_status_and_streams():
    for status in (0, 1, 42, 255):
        done = sh(f"echo out; echo err >&2; exit {status}")
        same((done.returncode, done.stdout, done.stderr), (status, b"out\n", b"err\n"))
    error = raises(ExitError, lambda: sprite().run("sh", "-c", "exit 3", check=True))
    same(error.exit_code(), 3)
    same(sh("kill -TERM $$").returncode, 143)


@step
def exec_environment_and_directory():
    same(out('echo "$GIVEN|$EMPTY|$HOME"', env={"GIVEN": "x y&=+", "EMPTY": ""}), b"x y&=+||/home/sprite\n")
    same(out("pwd; whoami"), b"/home/sprite\nsprite\n")
    same(out("pwd", cwd="/tmp"), b"/tmp\n")
    same(sprite().run("printf", "%s|", "", "two words", "it's $HOME", "ü\n", capture_output=True).stdout.decode(),
         "|two words|it's $HOME|ü\n|")


@step
def exec_input():
    given = bytes(range(256)) * 4096
    same(sprite().command("cat", stdin=io.BytesIO(given)).output(), given)
    same(sprite().command("sh", "-c", "cat; echo end").output(), b"end\n")


@step
def exec_big_output():
    done = sh("head -c 5000000 /dev/zero; head -c 5000000 /dev/zero >&2")
    same((done.returncode, len(done.stdout), len(done.stderr)), (0, 5_000_000, 5_000_000))


@step
def exec_one_line_of_16_megabytes():
    same(len(out("head -c 16000000 /dev/zero | tr '\\0' x")), 16_000_000)


@step
def exec_a_program_that_cannot_start():
    done = sprite().run("no-such-program", capture_output=True)
    same(done.returncode, 127)
    assert b"no-such-program" in done.stderr, done.stderr
    same(sprite().run("/etc/passwd", capture_output=True).returncode, 126)
    same(sprite().run("true", cwd="/no/such/folder", capture_output=True).returncode != 0, True)


@step
def exec_in_a_sprite_that_is_not_there():
    same(raises(APIError, lambda: client.sprite(PREFIX + "none").run("true")).status_code, 404)


@step
def exec_with_a_time_limit():
    raises(SpriteTimeout, lambda: sprite().run("sleep", "100", timeout=0.5))
    for session in sprite().list_sessions():
        list(kill_session(sprite(), session.id))


@step
def exec_on_a_terminal():
    done = sprite().run("sh", "-c", "stty size; tty; echo err >&2; exit 5", tty=True, capture_output=True)
    same(done.returncode, 5)
    assert done.stdout.startswith(b"24 80\r\n/dev/pts/") and done.stdout.endswith(b"err\r\n"), done
    assert b"30 100" in sprite().run("stty", "size", tty=True, tty_rows=30, tty_cols=100, capture_output=True).stdout
    same(sh("tty").returncode, 1)


@step
def a_terminal_is_resized():
    async def course():
        seen = Watched()
        script = "stty size; read line; stty size; echo got $line"
        command = WSCommand(sprite().command("sh", "-c", script, tty=True, stdout=seen))
        await command.start()
        loop = asyncio.get_running_loop()
        # Without input to copy the SDK sends no end of input on a terminal.
        await loop.run_in_executor(None, seen.expect, b"24 80")
        await command.resize(120, 40)
        await command._write_stdin(b"word\r")
        same(await command.wait(), 0)
        assert b"40 120\r\ngot word" in seen.getvalue(), seen.getvalue()
        await command.close()

    asyncio.run(course())


@step
def control_connections_are_not_needed():
    controlled = SpritesClient(TOKEN, base_url=URL, control_mode=True)
    same(controlled.sprite(PREFIX + "main").command("echo", "direct").output(), b"direct\n")


# Sessions


async def leave(script, text):
    """Starts a program and goes away once it said the text; its session's id."""
    seen, ids = Watched(), []
    command = WSCommand(sprite().command("sh", "-c", script, stdout=seen))
    command.text_message_handler = ids.append
    await command.start()
    await asyncio.get_running_loop().run_in_executor(None, seen.expect, text)
    await command.close()
    return json.loads(ids[0])["session_id"]


@step
def a_session_is_listed_attached_to_with_replay_and_ends():
    script = "echo early; while ! [ -e go ]; do sleep 0.02; done; echo late; exit 7"
    identity = asyncio.run(leave(script, b"early"))
    listed = sprite().list_sessions()
    same(([s.id for s in listed], listed[0].tty, listed[0].workdir), ([identity], False, "/home/sprite"))
    assert "echo early" in listed[0].command, listed[0]
    same([s.id for s in list_sessions(sprite())], [identity])
    seen = Watched()
    attached = sprite().attach_session(identity)
    attached.stdout = seen
    result = []
    watcher = threading.Thread(target=lambda: result.append(raises(ExitError, attached.run)))
    watcher.start()
    seen.expect(b"early\n")
    (home() / "go").write_bytes(b"")
    watcher.join(PATIENCE)
    same((result[0].exit_code(), seen.getvalue()), (7, b"early\nlate\n"))
    until(lambda: sprite().list_sessions() == [])
    raises(APIError, lambda: sprite().attach_session(identity).run())
    (home() / "go").unlink()


@step
def a_session_is_killed_with_its_children():
    identity = asyncio.run(leave("setsid sleep 1000 & echo up; sleep 1000", b"up"))
    kinds = [event.type for event in kill_session(sprite(), identity)]
    same(kinds, ["signal", "exited", "complete"])
    same(sprite().list_sessions(), [])
    same(out("grep -l sleep /proc/[0-9]*/comm || true"), b"")
    error = raises(APIError, lambda: kill_session(sprite(), "1"))
    same(error.status_code, 404)
    deaf = asyncio.run(leave("trap '' TERM; echo up; sleep 1000; sleep 1000", b"up"))
    kinds = [event.type for event in kill_session(sprite(), deaf, "SIGTERM", 0)]
    same(kinds, ["signal", "timeout", "killed", "complete"])


# Checkpoints


def last(events):
    *before, end = list(events)
    assert all(event.type == "info" for event in before), before
    return end


@step
def checkpoints_are_made_listed_and_restored():
    (home() / "state").write_text("one")
    same(last(sprite().create_checkpoint("clean")).data, "Checkpoint v1 created successfully")
    (home() / "state").write_text("two")
    (home() / "stray").write_text("x")
    same(last(sprite().create_checkpoint()).data, "Checkpoint v2 created successfully")
    listed = {found.id: found for found in sprite().list_checkpoints()}
    same(set(listed) - {"Current"}, {"v1", "v2"})
    same((listed["v1"].comment, listed["v2"].history), ("clean", ["v1"]))
    same([c.id for c in sprite().list_checkpoints("v1")], ["Current", "v2", "v1"])
    one = sprite().get_checkpoint("v1")
    same((one.id, one.comment), ("v1", "clean"))
    assert listed["v1"].create_time <= listed["v2"].create_time
    end = last(sprite().restore_checkpoint("v1"))
    same((end.type, end.error), ("complete", None))
    same(((home() / "state").read_text(), (home() / "stray").exists()), ("one", False))
    same(last(sprite().restore_checkpoint("v2")).type, "complete")
    same((home() / "stray").read_text(), "x")


@step
def a_restore_ends_programs():
    identity = asyncio.run(leave("echo up; sleep 1000", b"up"))
    same([s.id for s in sprite().list_sessions()], [identity])
    same(last(sprite().restore_checkpoint("v1")).type, "complete")
    until(lambda: sprite().list_sessions() == [])


@step
def checkpoints_that_are_not_there():
    raises(NotFoundError, lambda: sprite().get_checkpoint("v9"))
    raises(NotFoundError, lambda: sprite().get_checkpoint("../v1"))
    for identity in ("v9", "clean", "../v1"):
        error = raises(SpriteError, lambda: list(sprite().restore_checkpoint(identity)))
        assert "404" in str(error) or "not found" in str(error).lower(), error


# The network policy


@step
def a_policy_is_set_and_read():
    same(sprite().get_network_policy().rules, [])
    rules = [PolicyRule(include="defaults"), PolicyRule(domain="*.x.example", action="allow")]
    sprite().update_network_policy(NetworkPolicy(rules=rules))
    same(sprite().get_network_policy().rules, rules)
    update_network_policy(sprite(), NetworkPolicy(rules=[PolicyRule(domain="*", action="deny")]))
    same(get_network_policy(sprite()).rules, [PolicyRule(domain="*", action="deny")])
    same(out("getent ahostsv4 a.x.example || echo none"), b"none\n")


@step
def a_policy_of_nonsense():
    for domain in ("no good", "http://x.example", "a..b", "10.0.0.0/8"):
        policy = NetworkPolicy(rules=[PolicyRule(domain=domain, action="allow")])
        error = raises(APIError, lambda: update_network_policy(sprite(), policy))
        same(error.status_code, 400)
    same(sprite().get_network_policy().rules, [PolicyRule(domain="*", action="deny")])


# Files


@step
def files_are_written_read_and_listed():
    content = bytes(range(256)) * 20_000
    (home() / "deep/er/data.bin").write_bytes(content, mode=0o640)
    same((home() / "deep/er/data.bin").read_bytes(), content)
    (home() / "deep/a file & more?.txt").write_text("ü")
    same(sorted((home() / "deep").listdir()), ["a file & more?.txt", "er"])
    stat = (home() / "deep/er/data.bin").stat()
    same((stat.name, stat.size, stat.mode, stat.is_dir), ("data.bin", len(content), "0640", False))
    assert abs((datetime.now(timezone.utc) - stat.mod_time).total_seconds()) < 300, stat.mod_time
    assert (home() / "deep").is_dir() is False, "stat is of the first entry of a directory: the SDK's own limit"
    assert (home() / "deep/er/data.bin").is_file() and not (home() / "none").exists()
    same(out("stat -c '%a %U' deep/er/data.bin"), b"640 sprite\n")


@step
def directories_are_made_and_removed():
    (home() / "made").mkdir()
    same(out("ls -A made; test -d made && echo dir"), b"dir\n")
    raises(FileNotFoundError_, lambda: (home() / "no/such/folder").mkdir())
    (home() / "with/parents").mkdir(parents=True)
    (home() / "with/parents").mkdir(parents=True, exist_ok=True)
    (home() / "made").rmdir()
    (home() / "with").rmtree()
    same(out("ls -d made with 2> /dev/null || true"), b"")


@step
def files_are_renamed_copied_and_given_modes():
    (home() / "first").write_text("content")
    moved = (home() / "first").rename("second")
    same((str(moved), moved.read_text(), (home() / "first").exists()), ("/home/sprite/second", "content", False))
    moved.copy_to(home() / "third").chmod(0o700)
    same(out("stat -c %a second third; cat third"), b"644\n700\ncontent")
    (home() / "tree/sub").mkdir(parents=True)
    (home() / "tree/sub/leaf").write_text("leaf")
    (home() / "tree").copy_to(home() / "copy")
    same((home() / "copy/sub/leaf").read_text(), "leaf")
    (home() / "copy").chmod(0o755, recursive=True)
    same(out("stat -c %a copy copy/sub copy/sub/leaf"), b"755\n755\n755\n")
    (home() / "tree").rmtree()
    (home() / "copy").rmtree()
    for name in ("second", "third"):
        (home() / name).unlink()
    (home() / "third").unlink(missing_ok=True)
    (home() / "touched").touch()
    same((home() / "touched").read_bytes(), b"")


@step
def what_files_refuse():
    (home() / "full/file").write_text("x")
    full, none = home() / "full", home() / "none"
    raises(FileNotFoundError_, none.read_bytes)
    raises(FileNotFoundError_, none.unlink)
    raises(FileNotFoundError_, lambda: none.rename("other"))
    raises(FileNotFoundError_, lambda: none.copy_to("other"))
    raises(FileNotFoundError_, lambda: none.chmod(0o600))
    raises(FileNotFoundError_, lambda: list(none.iterdir()))
    raises(FileNotFoundError_, lambda: (home() / "none/x").write_text("x", mkdir_parents=False))
    raises(IsADirectoryError_, full.read_bytes)
    raises(IsADirectoryError_, lambda: full.write_bytes(b""))
    raises(IsADirectoryError_, lambda: full.copy_to("other", recursive=False))
    raises(NotADirectoryError_, lambda: (home() / "full/file/x").write_bytes(b""))
    raises(DirectoryNotEmptyError, full.rmdir)
    raises(DirectoryNotEmptyError, full.unlink)
    raises(FilesystemError, lambda: (home() / "bad").write_bytes(b"", mode=0o77777))
    shadow = sprite().filesystem("/") / "usr/janebot-conformance"
    error = raises(FilesystemError, lambda: shadow.write_bytes(b""))
    assert isinstance(error, PermissionError_) or error.code == "EROFS", error


# What this host does not offer


@step
def services_are_refused_with_a_sentence():
    for call in (
        sprite().list_services,
        lambda: sprite().get_service("web"),
        lambda: list(sprite().create_service("web", "sleep", ["1"])),
        lambda: list(sprite().start_service("web")),
        lambda: list(sprite().stop_service("web")),
        lambda: sprite().signal_service("web", "HUP"),
        lambda: sprite().delete_service("web"),
    ):
        error = raises(SpriteError, call)
        assert "501" in str(error) or "does not offer" in str(error), error


# The asynchronous client


@step
def the_asynchronous_client():
    async def course():
        async with AsyncSpritesClient(TOKEN, base_url=URL) as client:
            made = await client.create_sprite(PREFIX + "async")
            try:
                same(await made.command("echo", "hello").output(), b"hello\n")
                same((await made.run("sh", "-c", "exit 42")).returncode, 42)
                path = made.filesystem("/home/sprite") / "file"
                await path.write_text("text")
                same(await path.read_text(), "text")
                done = await asyncio.gather(*(made.run("sh", "-c", f"exit {n}") for n in range(8)))
                same([one.returncode for one in done], list(range(8)))
            finally:
                await client.delete_sprite(PREFIX + "async")

    asyncio.run(course())


@step
def delete():
    sprite().delete()
    raises(NotFoundError, lambda: client.get_sprite(PREFIX + "main"))
    raises(NotFoundError, lambda: client.delete_sprite(PREFIX + "main"))


def main():
    failed = 0
    for found in client.list_all_sprites(PREFIX):
        found.delete()
    for function in STEPS:
        began = time.monotonic()
        try:
            function()
            verdict = "ok"
        except Exception:
            traceback.print_exc(file=sys.stdout)
            verdict, failed = "FAILED", failed + 1
        print(f"{verdict:6} {1000 * (time.monotonic() - began):6.0f} ms  {function.__name__}", flush=True)
    print(f"{len(STEPS) - failed} of {len(STEPS)} steps hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
