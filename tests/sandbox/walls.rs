//! What can't be seen or done from inside. Each refusal is asserted by its exact error, so that a wall which is missing
//! does not pass because of another.

use super::*;

#[tokio::test]
async fn nothing_of_the_machine_shows_but_its_programs() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    let listing =
        says(&sandbox, "ls -A /home /opt /srv /mnt /var/lib; ls /sys /boot /work 2>&1 | grep -c 'No such'").await;
    assert_eq!(listing, "/home:\nsprite\n\n/mnt:\n\n/opt:\n\n/srv:\n\n/var/lib:\n3");
    assert_ne!(run(&sandbox, sh("ls /root/.bashrc || cat /etc/shadow || cat /etc/machine-id")).await.status, 0);
    assert_eq!(says(&sandbox, "ls -A /usr/etc /usr/local/etc 2>/dev/null | grep -v : | grep . || true").await, "");
    let processes: usize = says(&sandbox, "ls /proc | grep -c '^[0-9]'").await.parse().unwrap();
    assert!(processes < 10, "{processes}");
    // The one that lists is of the listing itself.
    assert_eq!(says(&sandbox, "ls /proc/self/fd | tr '\\n' ' '").await, "0 1 2 3");
    let mounts = says(&sandbox, "cat /proc/self/mountinfo").await;
    let own_path = sprite.path();
    assert!(!mounts.contains(own_path.to_str().unwrap()), "{mounts}");
    let devices = says(&sandbox, "ls /dev").await.replace('\n', " ");
    assert_eq!(devices, "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero");
    assert_eq!(run(&sandbox, sh("echo x > /usr/bin/x")).await.status, 2);
}

#[tokio::test]
async fn sockets_of_the_machine_are_out_of_reach_and_those_of_the_gateway_are_not() {
    let sprite = Sprite::new();
    let mut sandbox = sprite.start(&[]).await;
    let network = sandbox.take_network().unwrap();
    assert!(sandbox.take_network().is_none());
    assert_eq!(network.listeners.iter().map(|(port, _)| *port).collect::<Vec<_>>(), [443]);
    let here = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = here.local_addr().unwrap().port();
    let program = format!(
        "
import socket, errno
def connect(address):
    s = socket.socket()
    s.settimeout(5)
    try:
        s.connect(address)
        return 'connected'
    except OSError as e:
        return errno.errorcode[e.errno]
for address in [('127.0.0.1', {port}), ('198.18.77.7', 443), ('198.18.77.7', 444), ('169.254.169.254', 80), ('1.1.1.1', 443)]:
    print(connect(address))
"
    );
    let Some(text) = python(&sandbox, &program).await else { return };
    assert_eq!(text, "ECONNREFUSED\nconnected\nECONNREFUSED\nENETUNREACH\nENETUNREACH");
    let listener = std::net::TcpListener::from(network.listeners.into_iter().next().unwrap().1);
    let (stream, _) = listener.accept().unwrap();
    assert_eq!(stream.local_addr().unwrap().to_string(), "198.18.77.7:443");
}

/// Rows of the threat table that are a single system call, with the exact error that their wall gives.
#[tokio::test]
async fn system_calls_that_lead_out_are_refused_with_their_own_error() {
    let sprite = Sprite::new();
    let sandbox = sprite.start(&[]).await;
    if !cfg!(target_arch = "x86_64") {
        println!("skipped: the numbers are those of x86_64");
        return;
    }
    let program = "
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in args])
    print(name, 'done' if result >= 0 else errno.errorcode[ctypes.get_errno()])
call('mount', 165, b'none', b'/mnt', b'tmpfs', 0, 0)
call('umount', 166, b'/proc/sys', 0)
call('unshare-user', 272, 0x10000000)
call('clone-newuser', 56, 0x10000000 | 17, 0, 0, 0, 0)
call('clone3', 435, 0, 0)
call('setns', 308, 0, 0)
call('chroot', 161, b'/tmp')
call('pivot_root', 155, b'.', b'.')
call('open_tree', 428, -100, b'/', 1)
call('bpf', 321, 0, 0, 0)
call('io_uring_setup', 425, 1, 0)
call('userfaultfd', 323, 0)
call('keyctl', 250, 0, -3, 1)
call('add_key', 248, b'user', b'a', b'b', 1, -3)
call('personality', 135, 0x0040000)
call('open_by_handle_at', 304, -1, 0, 0)
call('reboot', 169, 0xfee1dead, 672274793, 0, 0)
call('perf_event_open', 298, 0, 0, -1, -1, 0)
call('vsock', 41, 40, 1, 0)
call('alg', 41, 38, 5, 0)
call('packet', 41, 17, 3, 0)
call('raw', 41, 2, 3, 1)
call('raw6', 41, 10, 3, 58)
call('netfilter', 41, 16, 3, 12)
call('netlink-route', 41, 16, 3, 0)
call('x32-getpid', 0x40000000 | 39)
call('future', 600)
call('ptrace-1', 101, 16, 1, 0, 0)
call('setuid', 105, 0)
call('setgroups', 116, 0, 0)
call('mknod', 133, b'/tmp/disk', 0o60600, 0x0801)
call('tiocsti', 16, 0, 0x5412, b'x')
call('kill-1', 62, 1, 9)
call('getppid', 110)
def opens(path, mode='rb'):
    try:
        with open(path, mode) as f: return str(len(f.read(10)))
    except OSError as e: return errno.errorcode[e.errno]
for path in ['/proc/1/environ', '/proc/1/mem', '/proc/%d/environ' % os.getppid(), '/proc/kcore', '/proc/kallsyms', '/dev/kvm', '/sys/class']:
    print(path.replace(str(os.getppid()), 'supervisor') if os.getppid() > 1 else path, opens(path))
for path in ['/proc/sys/kernel/core_pattern', '/proc/sys/user/max_user_namespaces', '/proc/self/uid_map']:
    try:
        with open(path, 'wb', buffering=0) as f: f.write(b'1')
        print(path, 'written')
    except OSError as e: print(path, errno.errorcode[e.errno])
print(open('/proc/sys/user/max_user_namespaces').read().strip())
print([l.split()[1] for l in open('/proc/self/status') if l.startswith(('CapInh','CapPrm','CapEff','CapBnd','CapAmb','NoNewPrivs','Seccomp:'))])
";
    let Some(text) = python(&sandbox, program).await else { return };
    let expected = "\
mount EPERM
umount EPERM
unshare-user EPERM
clone-newuser EPERM
clone3 ENOSYS
setns EPERM
chroot EPERM
pivot_root EPERM
open_tree EPERM
bpf EPERM
io_uring_setup EPERM
userfaultfd EPERM
keyctl EPERM
add_key EPERM
personality EPERM
open_by_handle_at EPERM
reboot EPERM
perf_event_open EPERM
vsock EPERM
alg EPERM
packet EPERM
raw EPERM
raw6 EPERM
netfilter EPERM
netlink-route done
x32-getpid ENOSYS
future ENOSYS
ptrace-1 EPERM
setuid EPERM
setgroups EPERM
mknod EPERM
tiocsti EPERM
kill-1 done
getppid done
/proc/1/environ EACCES
/proc/1/mem EACCES
/proc/supervisor/environ EACCES
/proc/kcore nothing
/proc/kallsyms nothing
/dev/kvm ENOENT
/sys/class ENOENT
/proc/sys/kernel/core_pattern EROFS
/proc/sys/user/max_user_namespaces EROFS
/proc/self/uid_map EPERM
0
['0000000000000000', '0000000000000000', '0000000000000000', '0000000000000000', '0000000000000000', '1', '2']";
    // What the kernel does not have at all shows nothing either.
    let text = ["kcore", "kallsyms"].iter().fold(text, |text, name| {
        text.replace(&format!("{name} 0\n"), &format!("{name} nothing\n"))
            .replace(&format!("{name} ENOENT\n"), &format!("{name} nothing\n"))
    });
    // For an ordinary user's sandbox there is no root, mapped or not.
    let text = text.replace("setuid EINVAL", "setuid EPERM");
    similar(&text, expected);
    assert_eq!(says(&sandbox, "echo init lives").await, "init lives");
}

/// Equal line by line, and says which line is not.
fn similar(got: &str, expected: &str) {
    for (got, expected) in got.lines().zip(expected.lines()) {
        assert_eq!(got, expected);
    }
    assert_eq!(got.lines().count(), expected.lines().count());
}

#[tokio::test]
async fn a_root_directory_of_the_operators_replaces_the_machines_programs() {
    let mut sprite = Sprite::new();
    // Where only its owner can go, as below a service's own folder.
    let closed = sprite.dir.path().join("closed");
    let root = closed.join("root");
    let libraries = std::process::Command::new("ldd").arg("/bin/sh").output().map(|o| o.stdout).unwrap_or_default();
    let libraries = String::from_utf8(libraries).unwrap();
    let files = libraries.split_whitespace().filter(|word| word.starts_with('/')).chain(["/bin/sh"]);
    for file in files {
        let copy = root.join(&file[1..]);
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::copy(file, copy).unwrap();
    }
    std::fs::create_dir_all(root.join("etc")).unwrap();
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nubuntu:x:1000:1000::/home/ubuntu:/bin/sh\n")
        .unwrap();
    std::os::unix::fs::symlink("/somewhere/else", root.join("etc/resolv.conf")).unwrap();
    std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    sprite.rootfs = Some(root);
    let sandbox = sprite.start(&[]).await;
    let script =
        "while read line; do echo $line; done < /etc/passwd; read line < /etc/resolv.conf; echo $line; echo /usr/*";
    let expected = "root:x:0:0::/root:/bin/sh\nsprite:x:1000:1000:sprite:/home/sprite:/bin/bash\nnameserver 198.18.0.1\n/usr/local";
    assert_eq!(says(&sandbox, script).await, expected);
    assert_eq!(refusal(sandbox.spawn(argv(&["python3"])).await).exit_status(), Some(127));
}

#[tokio::test]
async fn links_in_the_place_of_mount_points_choose_nothing() {
    let sprite = Sprite::new();
    let (sandbox, run) = sprite.start_run(&[]).await;
    // Only in an ordinary user's sandbox do these belong to the sprite; elsewhere the attempt fails already.
    let script =
        "cd /etc; mv ssl old && ln -s /home/sprite ssl; mkdir -p ~/certs; rm -f hosts && ln -s /tmp/x hosts; true";
    says(&sandbox, script).await;
    sandbox.stop().await.unwrap();
    let layer = layers::freeze(&sprite.path(), &run, "hostile").unwrap();
    let sandbox = sprite.start(&[&layer]).await;
    assert_eq!(says(&sandbox, "ls certs; grep -c sprite /proc/self/mountinfo || true").await, "0");
}
