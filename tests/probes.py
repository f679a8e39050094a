"""Deeds that a program must not be able to do, one each.

A probe's function tries the deed and returns "won" where it succeeds.
"""

# the body of a function that returns if the deed succeeded
PROBES: dict[str, str] = {
    # files
    "read /etc/passwd": "open('/etc/passwd').read()",
    "read by a descriptor of a folder": "os.open('etc/passwd', 0, dir_fd=os.open('/', 0))",
    "list the home folders": "assert os.listdir('/home') + os.listdir('/root')",
    "list /proc": "os.listdir('/proc')",
    "read /proc/self/environ": "open('/proc/self/environ').read()",
    "read /sys": "os.listdir('/sys')",
    "write into the standard library": "open(os.__file__, 'a').write('#')",
    "write beside the standard library": "open(os.path.dirname(os.__file__) + '/x.py', 'w')",
    "write /": "open('/x', 'w')",
    "write /dev/shm": "open('/dev/shm/x', 'w')",
    "open a disk": "open('/dev/vda', 'rb'); open('/dev/mem', 'rb')",
    "open a terminal": "open('/dev/tty', 'w')",
    "list installed packages": "assert os.listdir(os.path.dirname(os.__file__) + '/site-packages')",
    "a symbolic link out": "os.symlink('/etc', '/tmp/e'); os.listdir('/tmp/e')",
    "a hard link": "os.link(os.__file__, '/tmp/os.py'); open('/tmp/os.py', 'a')",
    "a device node": "os.mknod('/tmp/null', 0o20666, os.makedev(1, 3))",
    "a fifo": "os.mkfifo('/tmp/fifo')",
    "chroot": "os.chroot('/tmp')",
    "a large file": "open('/tmp/x', 'wb').write(bytes(64 << 20))",
    "a thousand files": "[open(f'/tmp/{i}', 'w').close() for i in range(1000)]",
    "change permissions": "os.chmod('/tmp', 0o4777)",
    # network
    "a TCP socket": "import socket; socket.socket()",
    "a UDP socket": "import socket; socket.socket(type=socket.SOCK_DGRAM)",
    "a Unix socket": "import socket; socket.socket(socket.AF_UNIX)",
    "a pair of datagram sockets": "import socket; socket.socketpair(type=socket.SOCK_DGRAM)",
    "netlink": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "a raw socket": "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "resolve a name": "import socket; socket.getaddrinfo('localhost', 80)",
    "fetch a page": "import urllib.request as u; u.urlopen('http://127.0.0.1:1', timeout=1)",
    # processes
    "fork": "os.fork() or os._exit(0)",
    "a shell": "assert os.system('true') == 0",
    "subprocess": "import subprocess; subprocess.run(['/bin/true'], check=True)",
    "exec": "os.execv('/bin/true', ['true'])",
    "posix_spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "multiprocessing": "import multiprocessing as m; p = m.Process(target=print); p.start()",
    "kill the parent": "os.kill(os.getppid() or -1, 9)",
    "kill everything": "os.kill(-1, 9)",
    "kill oneself": "os.kill(os.getpid(), 9); time.sleep(1)",
    "kill the group": "os.killpg(0, 9)",
    "signals by a descriptor's owner": "import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
    "become root": "os.setuid(0); os.setgid(0); open('/etc/shadow')",
    "raise the limits": "import resource as r\n"
    " r.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY, r.RLIM_INFINITY))\n"
    " r.setrlimit(r.RLIMIT_CPU, (99, 99))",
    "a namespace": "call('unshare', 0x10000000)",
    "ptrace": "call('ptrace', 16, os.getppid())",
    "mount": "call('mount', b'none', b'/tmp', b'tmpfs')",
    "a file in memory": "os.memfd_create('x')",
    "a process descriptor": "os.pidfd_open(os.getpid())",
    "bpf": "system_call(321, 0, 0, 0)",
    "io_uring": "system_call(425, 1, 0)",
    "the kernel's keys": "system_call(250, 0, -3, 0)",
    "userfaultfd": "system_call(323, 1)",
    "performance events": "system_call(298, 0, 0, -1, -1, 0)",
    "a process by clone": "system_call(56, 17, 0, 0, 0, 0) or os._exit(0)",
    "a process by clone3": "system_call(435, 0, 0)",
    "open by a handle": "system_call(304, 3, 0, 0)",
    "another personality": "system_call(135, 0x0040000)",
    "the clock": "time.clock_settime(0, 0)",
    "the host's name": "import socket; socket.sethostname('x')",
    "a message queue": "system_call(240, b'/x', 0o102, 0o600, 0)",
    "shared memory": "system_call(29, 1234, 4096, 0o1666)",
    "an old architecture's call": "system_call(0x40000000 + 39)",
    "a scheduler": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    "a higher priority": "os.nice(-5)",
    "a new session filter": "system_call(317, 1, 0, 0)",
    # memory and other means
    "a gigabyte": "bytes(1 << 30)",
    "a gigabyte in pieces": "x = [bytes(1 << 20) for _ in range(1024)]",
    "a gigabyte mapped": "import mmap; mmap.mmap(-1, 1 << 30)",
    "two thousand threads": "threads(2000)",
    "a thousand descriptors": "[os.dup(0) for _ in range(1000)]",
    "a large message of the exception": "raise KeyError('x' * (64 << 20))",
}
PROBE = """
import ctypes, os, threading, time
def call(name, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    assert getattr(libc, name)(*args) >= 0
def system_call(number, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(number, *args)
    assert result >= 0 or ctypes.get_errno() not in (1, 38)  # EPERM, ENOSYS
    return result
def threads(n):
    threading.stack_size(32768)
    for _ in range(n): threading.Thread(target=time.sleep, args=(2,), daemon=True).start()
def f():
 try:
  deed()
 except BaseException as error:
  return repr(error)[:99]
 return "won"
def deed():
 {}
"""
