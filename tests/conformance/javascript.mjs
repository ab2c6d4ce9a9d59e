// Drives a sprite host with the official JavaScript SDK, step by step, and prints each step.
//
// Needs SPRITES_API_URL, SPRITES_TOKEN and SPRITES_SDK, the path of the SDK's entry file. Exit status 0 when every step
// holds. `tests/conformance.rs` runs it. What the Python driver shows already is left out, but for the programs, whose
// frames this SDK reads in its own way.

import assert from "node:assert/strict";
import { pathToFileURL } from "node:url";

const { SpritesClient, ExecError } = await import(pathToFileURL(process.env.SPRITES_SDK));
const baseURL = process.env.SPRITES_API_URL;
const token = process.env.SPRITES_TOKEN;
const client = new SpritesClient(token, { baseURL });
const PREFIX = "js-";
const PATIENCE = 20_000;
const sprite = () => client.sprite(PREFIX + "main");
const home = () => sprite().filesystem("/home/sprite");

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(holds) {
  const end = Date.now() + PATIENCE;
  while (!(await holds())) {
    assert.ok(Date.now() < end, "not in time");
    await pause(20);
  }
}

// The command's output, once it holds the text.
function expectOutput(command, text) {
  return new Promise((resolve, reject) => {
    let seen = "";
    const timer = setTimeout(() => reject(new Error(`${text} did not come, only ${seen}`)), PATIENCE);
    command.stdout.on("data", (data) => {
      seen += data;
      if (seen.includes(text)) {
        clearTimeout(timer);
        resolve(seen);
      }
    });
    command.on("error", reject);
  });
}

async function status(script, options) {
  try {
    return { exitCode: 0, ...(await sprite().execFile("sh", ["-c", script], options)) };
  } catch (error) {
    assert.ok(error instanceof ExecError, String(error));
    return { exitCode: error.exitCode, stdout: error.stdout, stderr: error.stderr };
  }
}

async function all(stream) {
  const events = [];
  for (let event; (event = await stream.next()) !== null; ) events.push(event);
  return events;
}

const steps = {
  async "create, get and update"() {
    const options = { labels: ["x"], environment: { OWN: "1" }, urlSettings: { auth: "public" }, waitForCapacity: true };
    const made = await client.createSprite(PREFIX + "main", options);
    assert.deepEqual([made.name, made.labels], [PREFIX + "main", ["x"]]);
    await assert.rejects(client.createSprite(PREFIX + "main"), /already exists/);
    const updated = await sprite().update({ labels: ["y"] });
    assert.deepEqual(updated.labels, ["y"]);
    await sprite().updateURLSettings({ auth: "sprite" });
    const found = await client.getSprite(PREFIX + "main");
    assert.deepEqual([found.labels, found.urlSettings.auth], [["y"], "sprite"]);
    assert.ok(Math.abs(Date.now() - found.createdAt.getTime()) < 300_000);
    await assert.rejects(client.getSprite(PREFIX + "none"), /not found/i);
  },

  async "list with prefix and pages"() {
    const names = Array.from({ length: 53 }, (_, n) => `${PREFIX}page-${String(n).padStart(2, "0")}`);
    for (const name of names) await client.createSprite(name);
    const listed = await client.listAllSprites(PREFIX + "page-");
    assert.deepEqual(listed.map((found) => found.name), names);
    const page = await client.listSprites({ prefix: PREFIX + "page-", maxResults: 2 });
    assert.deepEqual([page.sprites.length, page.hasMore, page.organizationName], [2, true, "local"]);
    for (const name of names) await client.deleteSprite(name);
  },

  async "sprites are watched"() {
    const stream = await client.watchSprites({ prefix: PREFIX });
    const first = await stream.next();
    assert.deepEqual([first.name, first.status], [PREFIX + "main", "cold"]);
    assert.ok(first.timestamp instanceof Date && first.organization.cold >= 1, JSON.stringify(first));
    await sprite().execFile("true");
    let next;
    do next = await stream.next();
    while (next.type === "heartbeat");
    assert.deepEqual([next.name, next.status], [PREFIX + "main", "running"]);
    stream.close();
  },

  async "check and restart"() {
    const check = await sprite().check();
    assert.deepEqual([check.spriteName, check.status], [PREFIX + "main", "healthy"]);
    assert.ok(check.checkedAt instanceof Date && typeof check.elapsed === "number", JSON.stringify(check));
    const running = sprite().spawn("sh", ["-c", "echo up; sleep 1000"]);
    await expectOutput(running, "up");
    const restarted = await sprite().restart();
    assert.equal(restarted.spriteName, PREFIX + "main");
    assert.equal(await running.wait(), 137);
    await sprite().upgrade();
  },

  async "a wrong token"() {
    const stranger = new SpritesClient("not-the-token", { baseURL });
    await assert.rejects(stranger.getSprite(PREFIX + "main"), /401|token/);
    await assert.rejects(stranger.sprite(PREFIX + "main").execFile("true"));
  },

  async "exec: streams and statuses"() {
    for (const code of [0, 1, 42, 255]) {
      const done = await status(`echo out; echo err >&2; exit ${code}`);
      assert.deepEqual(done, { exitCode: code, stdout: "out\n", stderr: "err\n" });
    }
    assert.equal((await status("kill -TERM $$")).exitCode, 143);
    await assert.rejects(sprite().execFile("no-such-program"), (error) => error.exitCode === 127);
    assert.equal((await sprite().exec("echo two words")).stdout, "two words\n");
  },

  async "exec: environment and directory"() {
    const options = { env: { GIVEN: "x y&=+" }, cwd: "/tmp" };
    assert.equal((await status("echo $OWN $GIVEN; pwd", options)).stdout, "1 x y&=+\n/tmp\n");
  },

  async "exec: input and its end"() {
    const cat = sprite().spawn("cat");
    cat.on("spawn", () => cat.stdin.end("some input\n"));
    const seen = expectOutput(cat, "input");
    assert.equal(await cat.wait(), 0);
    assert.equal(await seen, "some input\n");
  },

  async "exec: big output"() {
    const done = await status("head -c 4000000 /dev/zero | tr '\\0' x; head -c 4000000 /dev/zero >&2");
    assert.deepEqual([done.exitCode, done.stdout.length, done.stderr.length], [0, 4_000_000, 4_000_000]);
  },

  async "exec: a hundred short programs, none of which loses its output"() {
    const done = await Promise.all(Array.from({ length: 100 }, async (_, n) => {
      await pause(10 * n);
      return (await sprite().execFile("echo", [String(n)])).stdout;
    }));
    assert.deepEqual(done, Array.from({ length: 100 }, (_, n) => `${n}\n`));
  },

  async "exec: a signal"() {
    const command = sprite().spawn("sh", ["-c", "trap 'echo caught; exit 9' TERM; echo up; while :; do sleep 0.01; done"]);
    await expectOutput(command, "up");
    command.kill("SIGTERM");
    assert.equal(await command.wait(), 9);
  },

  async "exec: a terminal with its size, and how it ends"() {
    const command = sprite().spawn("sh", ["-c", "stty size; read line; stty size"], { tty: true, rows: 30, cols: 100 });
    await expectOutput(command, "30 100");
    command.resize(120, 40);
    const resized = expectOutput(command, "40 120");
    command.stdin.write("go\r");
    await resized;
    assert.equal(await command.wait(), 0);
    const failing = sprite().spawn("sh", ["-c", "exit 5"], { tty: true });
    assert.equal(await failing.wait(), 1, "this SDK knows failure on a terminal only by the close code");
  },

  async "exec over HTTP"() {
    // This SDK takes all that it reads at once for one frame. On a busy machine the host's pauses are too short for it, so
    // the program makes its own.
    const script = "cat; sleep 0.3; echo err >&2; sleep 0.3";
    const done = await sprite().execFileHTTP("sh", ["-c", script], { input: "given\n", cwd: "/tmp" });
    assert.deepEqual(done, { exitCode: 0, stdout: "given\n", stderr: "err\n" });
    await assert.rejects(sprite().execFileHTTP("sh", ["-c", "exit 3"]), (error) => error.exitCode === 3);
  },

  async "control connections are not needed"() {
    const controlled = new SpritesClient(token, { baseURL, controlMode: true });
    assert.equal((await controlled.sprite(PREFIX + "main").execFile("echo", ["direct"])).stdout, "direct\n");
  },

  async "a detached session is listed, attached to and killed"() {
    const script = "echo early; while ! [ -e go ]; do sleep 0.02; done; echo late; sleep 1000";
    const command = sprite().createSession("sh", ["-c", script], { maxRunAfterDisconnect: "60s" });
    await expectOutput(command, "early");
    const [listed] = await sprite().listSessions();
    assert.match(listed.command, /echo early/);
    assert.equal(listed.tty, true);
    command.wsCmd.close();
    const attached = sprite().attachSession(listed.id);
    attached.on("error", () => {});
    const late = expectOutput(attached, "late");
    await until(async () => (await sprite().listSessions()).length === 1);
    await home().writeFile("go", "");
    await late;
    const events = await all(await sprite().killSession(listed.id, "SIGTERM", "5s"));
    assert.deepEqual(events.map((event) => event.type), ["signal", "exited", "complete"]);
    assert.equal(events.at(-1).exitCode, 143);
    assert.equal(await attached.wait(), 1, "this SDK knows failure on a terminal only by the close code");
    assert.deepEqual(await sprite().listSessions(), []);
    await assert.rejects(sprite().killSession("1"), /not found/);
  },

  async "checkpoints"() {
    await home().writeFile("state", "one");
    const made = await all(await sprite().createCheckpoint("clean"));
    assert.deepEqual([made.at(-1).type, made.at(-1).data], ["complete", "Checkpoint v1 created successfully"]);
    await home().writeFile("state", "two");
    const [current, listed] = await sprite().listCheckpoints();
    assert.deepEqual([current.id, listed.id, listed.comment], ["Current", "v1", "clean"]);
    assert.ok(listed.createTime instanceof Date && !Number.isNaN(listed.createTime.getTime()));
    assert.equal((await sprite().listCheckpoints("v1")).length, 2);
    assert.equal((await sprite().getCheckpoint("v1")).comment, "clean");
    await assert.rejects(sprite().getCheckpoint("v9"));
    assert.equal((await all(await sprite().restoreCheckpoint("v1"))).at(-1).type, "complete");
    assert.equal(await home().readFile("state", "utf8"), "one");
    await assert.rejects(sprite().restoreCheckpoint("clean"), /not found/);
  },

  async "the network policy"() {
    const policy = { rules: [{ include: "defaults" }, { domain: "*.x.example", action: "allow" }] };
    await sprite().updateNetworkPolicy(policy);
    assert.deepEqual((await sprite().getNetworkPolicy()).rules.length, 2);
    await assert.rejects(sprite().updateNetworkPolicy({ rules: [{ domain: "no good", action: "allow" }] }));
  },

  async "files"() {
    const files = home();
    await files.writeFile("d/x.txt", "text", { mode: 0o640 });
    assert.equal(await files.readFile("d/x.txt", "utf8"), "text");
    assert.ok((await files.readFile("d/x.txt")).equals(Buffer.from("text")));
    const stat = await files.stat("d/x.txt");
    assert.deepEqual([stat.size, stat.mode & 0o777, stat.isFile()], [4, 0o640, true]);
    await files.appendFile("d/x.txt", "s");
    await files.writeJSON("d/y.json", { a: 1 });
    assert.deepEqual(await files.readJSON("d/y.json"), { a: 1 });
    await files.mkdir("d/sub");
    await files.mkdir("d/many/levels", { recursive: true });
    const entries = await files.readdir("d", { withFileTypes: true });
    assert.deepEqual(entries.map((entry) => [entry.name, entry.isDirectory()]),
      [["many", true], ["sub", true], ["x.txt", false], ["y.json", false]]);
    await files.rename("d/x.txt", "d/z.txt");
    await files.copyFile("d/z.txt", "d/copy.txt");
    await files.copyFile("d", "e", { recursive: true });
    await files.chmod("e", 0o755, { recursive: true });
    assert.equal(await files.readFile("e/copy.txt", "utf8"), "texts");
    await files.rm("e", { recursive: true });
    await files.rm("none", { force: true });
    assert.equal(await files.exists("e/copy.txt"), false);
    for (const [code, call] of [
      ["ENOENT", () => files.readFile("none")],
      ["EISDIR", () => files.readFile("d")],
      ["ENOTEMPTY", () => files.rm("d")],
      ["ENOTDIR", () => files.writeFile("d/z.txt/x", "")],
      ["ENOENT", () => files.rm("none")],
    ]) {
      await assert.rejects(call(), (error) => error.code === code, code);
    }
  },

  async "what this host does not offer is refused with a sentence"() {
    const refused = /does not offer/;
    await assert.rejects(sprite().listServices(), refused);
    await assert.rejects(sprite().createService("web", { cmd: "sleep", args: ["1"] }), refused);
    await assert.rejects(sprite().getPrivilegesPolicy(), refused);
    await assert.rejects(sprite().updateResourcesPolicy({ memory: { limitMB: 100 } }), refused);
    await assert.rejects(home().chown("d", { uid: 0, gid: 0 }), refused);
    await assert.rejects(sprite().watchPorts());
  },

  async "delete"() {
    await sprite().delete();
    await assert.rejects(client.getSprite(PREFIX + "main"), /not found/i);
  },
};

for (const left of await client.listAllSprites(PREFIX)) await left.delete();
let failed = 0;
for (const [name, step] of Object.entries(steps)) {
  const began = performance.now();
  let verdict = "ok";
  try {
    await step();
  } catch (error) {
    console.log(error);
    verdict = "FAILED";
    failed += 1;
  }
  console.log(`${verdict.padEnd(6)} ${String(Math.round(performance.now() - began)).padStart(6)} ms  ${name}`);
}
const count = Object.keys(steps).length;
console.log(`${count - failed} of ${count} steps hold`);
process.exit(failed ? 1 : 0);
