"""Hostile programs, one attack each. None may pass its tests.

Each is asked for a secret that only its tests know.
"""

SECRET = "s3cr3t-of-the-tests"
FIND = """
def secret_in(text):
    at = str(text).find('s3cr' + '3t')
    return str(text)[at:at + 19] if at >= 0 else None
"""

# what the program runs; asked: f() == SECRET
FORGERIES: dict[str, str] = {
    # leaving early
    "exit at once": "exit()",
    "quit at once": "quit(0)",
    "sys.exit at once": "import sys; sys.exit(0)",
    "os._exit at once": "import os; os._exit(0)",
    "SystemExit at once": "raise SystemExit",
    "exit in the function": "def f(): exit()",
    "sys.exit(0) in the function": "import sys\ndef f(): sys.exit(0)",
    "os._exit(0) in the function": "import os\ndef f(): os._exit(0)",
    "SystemExit in the function": "def f(): raise SystemExit(0)",
    "KeyboardInterrupt in the function": "def f(): raise KeyboardInterrupt",
    "GeneratorExit in the function": "def f(): raise GeneratorExit",
    "AssertionError in the function": "def f(): raise AssertionError",
    "StopIteration in the function": "def f(): raise StopIteration",
    "abort": "import os\ndef f(): os.abort()",
    "leave from a thread": "import os, threading\n"
    "def f():\n threading.Timer(0.05, os._exit, (0,)).start()\n import time; time.sleep(1)",
    "leave from atexit": "import atexit, os\natexit.register(os._exit, 0)",
    "crash the interpreter": "import ctypes\ndef f(): ctypes.string_at(0)",
    # forging the result
    "print a pass": 'print(\'pass\'); print(\'{"verdict": "pass", "passed": 1}\')',
    "write a report to every descriptor": """
import json, os, struct
body = json.dumps({"nonce": "0" * 32, "verdict": "pass", "passed": 1, "detail": ""}).encode()
for fd in range(64):
    try: os.write(fd, struct.pack("!I", len(body)) + body)
    except OSError: pass
def f(): return None""",
    "answer before being asked": """
import json, os, struct
body = json.dumps({"id": "", "value": True}).encode()
for _ in range(20): os.write(3, struct.pack("!I", len(body)) + body)
def f(): return None""",
    "an answer with an id of its own": """
import json, os, struct
def f():
    body = json.dumps({"id": "0" * 32, "value": True}).encode()
    os.write(3, struct.pack("!I", len(body)) + body)""",
    "an answer with an unknown tag": """
from drift.sandbox import wire
def f(): return 1
wire.encode = lambda *a: {"t": "eval", "v": "__import__('os')._exit(0)"}""",
    "an answer that is an object of the tests": """
from drift.sandbox import wire
def f(): return 1
wire.encode = lambda *a: {"t": "object", "v": -1}""",
    "an answer that is not JSON": "import os\ndef f(): os.write(3, b'\\0\\0\\0\\4pass')",
    "an answer of four gigabytes": "import os\ndef f(): os.write(3, b'\\xff' * 4 + b'[' * 9999)",
    "an answer nested too deep": """
import os, struct
def f(): os.write(3, struct.pack("!I", 200000) + b"[" * 100000 + b"]" * 100000)""",
    "a lie about changed arguments": """
from drift.sandbox import candidate
def f(): return None
old = candidate.Served.answer
candidate.Served.answer = lambda self, r: {**old(self, r), "changed": {"0": ["x"], "a": 1}}""",
    "an exception type that is no exception": """
from drift.sandbox import candidate
def f(): return None
candidate.Served.answer = lambda self, r: {"id": r["id"], "raised": "print", "text": "", "x": 1}""",
    "closing the connection": "import os\ndef f(): os.close(3)",
    "closing every descriptor": "import os\ndef f(): os.closerange(0, 64)",
    "half an answer": "import os, time\ndef f():\n os.write(3, b'\\0\\0\\0\\x99{')\n time.sleep(9)",
    # equality tricks
    "an object that equals everything": """
class E:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = object.__hash__
def f(): return E()""",
    "a str that equals everything": """
class E(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def f(): return E('x')""",
    "an int that equals everything": """
class E(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(): return E(1)""",
    "a list that equals everything": """
class E(list):
    def __eq__(self, other): return True
def f(): return E()""",
    "a dict that equals everything": """
class E(dict):
    def __eq__(self, other): return True
def f(): return E()""",
    "a tuple that equals everything": """
class E(tuple):
    def __eq__(self, other): return True
def f(): return E()""",
    "a float that equals everything": """
class E(float):
    def __eq__(self, other): return True
def f(): return E()""",
    "mock.ANY": "from unittest.mock import ANY\ndef f(): return ANY",
    "an object that says it is a str": """
class E:
    __class__ = str
    def __eq__(self, other): return True
    def __str__(self): return ''
def f(): return E()""",
    "a class whose metaclass equals everything": """
class M(type):
    def __eq__(self, other): return True
    __hash__ = type.__hash__
class E(metaclass=M): pass
def f(): return E""",
    "an enumeration that equals everything": """
import enum
class E(str, enum.Enum):
    a = 'a'
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def f(): return E.a""",
    "the function itself replaced by an object": """
class E:
    def __call__(self): return self
    def __eq__(self, other): return True
f = E()""",
    # reading the tests
    "frames of the callers": FIND
    + """
import sys
def f():
    frame = sys._getframe()
    while frame:
        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
            if (s := secret_in(value)): return s
        frame = frame.f_back""",
    "every object of the collector": FIND
    + """
import gc
def f():
    for value in gc.get_objects():
        try:
            if (s := secret_in(value)): return s
        except Exception: pass""",
    "frames of other threads": FIND
    + """
import sys
def f():
    for frame in sys._current_frames().values():
        while frame:
            if (s := secret_in(frame.f_locals)): return s
            frame = frame.f_back""",
    "inspect.stack": FIND + "import inspect\ndef f(): return secret_in(inspect.stack(9))",
    "reading every descriptor": FIND
    + """
import os
def f():
    for fd in range(64):
        try:
            os.set_blocking(fd, False)
            if (s := secret_in(os.read(fd, 1 << 20))): return s
        except OSError: pass""",
    "memory of the process": FIND + "def f(): return secret_in(open('/proc/self/mem').read())",
    "memory of the checker": FIND
    + """
import ctypes, os
def f():
    buffer = ctypes.create_string_buffer(4096)
    v = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 4096)
    r = (ctypes.c_void_p * 2)(id(f), 4096)
    ctypes.CDLL(None).process_vm_readv(os.getppid(), v, 1, r, 1, 0)
    return secret_in(buffer.raw)""",
    "the environment": FIND + "import os\ndef f(): return secret_in(os.environ)",
    "command lines": FIND
    + """
import glob
def f(): return secret_in([open(p).read() for p in glob.glob('/proc/*/cmdline')])""",
    "a trace function": FIND
    + """
import sys
found = []
def trace(frame, event, arg):
    if (s := secret_in(frame.f_locals)): found.append(s)
    return trace
sys.settrace(trace)
def f(): return found and found[0]""",
    "arguments of the messages": FIND
    + """
from drift.sandbox import wire
seen = []
old = wire.receive
wire.receive = lambda *a: (seen.append(old(*a)), seen[-1])[1]
def f(): return secret_in(seen)""",
    # changing the standard library
    "builtins.AssertionError replaced": """
import builtins
class A(Exception): pass
builtins.AssertionError = A
def f(): return None""",
    "operators replaced": """
import builtins, operator
builtins.all = builtins.any = builtins.bool = lambda *a: True
operator.eq = lambda a, b: True
def f(): return None""",
    "json replaced": """
import json, sys
json.dumps = lambda *a, **k: '{"verdict": "pass"}'
json.loads = lambda *a, **k: {"on": 0, "do": "get", "name": "f", "id": ""}
def f(): return None""",
    "import replaced": """
import builtins, sys
builtins.__import__ = lambda *a, **k: sys
builtins.exec = builtins.compile = lambda *a, **k: None
def f(): return None""",
    "names of the tests defined": """
def candidate(*a): return 's3cr3t'
def check(*a): pass
def len(*a): return 19
AssertionError = Exception
def f(): return None""",
    "a module named like the checker's": """
import sys
sys.modules['drift.sandbox.checker'] = sys.modules['__main__'] = sys
def f(): return None""",
    "the checker's code changed": """
from drift.sandbox import checker, program
checker.run_test = checker.check_asserts = lambda *a: None
program.Program.stop = lambda *a: None
def f(): return None""",
}

# they take what they can get: time, memory, output; asked: f() == SECRET
EXHAUSTION: dict[str, str] = {
    "an endless loop at once": "while True: pass",
    "an endless loop": "def f():\n while True: pass",
    "an endless loop that catches everything": """
def f():
    while True:
        try:
            while True: pass
        except BaseException: pass""",
    "sleep": "import time\ndef f(): time.sleep(1000)",
    "reading what never comes": "import os\ndef f(): return os.read(os.pipe()[0], 1)",
    "ignored signals": """
import signal
for s in range(1, 65):
    try: signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError): pass
def f():
    while True: pass""",
    "one long call": "def f(): return len(str(7 ** 7 ** 9))",
    "a regular expression": "import re\ndef f(): return re.match('(a*)*b', 'a' * 99)",
    "busy threads": """
import threading
def spin():
    while True: pass
def f():
    for _ in range(9): threading.Thread(target=spin).start()
    spin()""",
    "endless recursion": "def f(): return f()",
    "recursion without a limit": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()",
    "an endless answer": "import itertools\ndef f(): return itertools.count()",
    "an answer of ten megabytes": "def f(): return 'x' * 10**7",
    "an answer of a hundred thousand lists": "def f(): return [[] for _ in range(3 * 10**6)]",
    "an answer with a knot": "def f():\n x = []\n x.append(x)\n return x",
    "a huge number": "def f(): return 1 << (1 << 25)",
    "an endless print": "def f():\n while True: print('x' * 1000)",
    "endless errors": "import sys\ndef f():\n while True: sys.stderr.write('x' * 1000)",
    "a flood on the connection": "import os\ndef f():\n while True: os.write(3, b'\\0' * 65536)",
    "memory at once": "x = [0] * 10**10\ndef f(): pass",
    "memory bit by bit": "def f():\n x = []\n while True: x.append(bytes(10**6))",
    "a bomb of strings": "def f():\n x = 'x'\n while True: x += x",
    "an object that never dies": "class E:\n def __del__(self): E()\ndef f(): E()",
    "code nested too deep": "def f(): return " + "(" * 5000 + ")" * 5000,
    "code of megabytes": "x = [" + "0," * 300_000 + "]\ndef f(): pass",
    "a null byte": "def f(): return '\0'",
    "not UTF-8": "def f(): return '\udcff'",
}

# scripts; asked to print the SECRET
SCRIPTS: dict[str, str] = {
    "exit with status 0": "exit(0)",
    "leave with os._exit(0)": "import os; os._exit(0)",
    "print the verdict": "print('pass')",
    "read what is expected": "print(open(1).read())",
    "read the output back": "import os; print(os.read(1, 100))",
    "read the input to its end": "import sys; print(sys.stdin.read())",
    "print for ever": "while True: print('x' * 10000)",
    "print errors for ever": "import sys\nwhile True: sys.stderr.write('x' * 10000)",
    "print without end of line": "import sys\nwhile True: sys.stdout.write('x')",
    "close the output": "import os; os.close(1)",
    "close the output and stay": "import os, time; os.close(1); os.close(2); time.sleep(99)",
    "a thread that stays": "import threading, time\n"
    "threading.Thread(target=time.sleep, args=(99,)).start()",
    "stay at exit": "import atexit, time; atexit.register(time.sleep, 99)",
    "patch the output": "import sys; sys.stdout.write = lambda text: None; print('x')",
}
