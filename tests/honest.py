"""Programs as people write them: each must pass in the sandbox."""

# name: (program with a function f, its test)
MODULES: dict[str, tuple[str, str]] = {
    "a class": (
        "class P:\n def __init__(self, x): self.x = x\n"
        " @property\n def y(self): return self.x + 1\n"
        "def f(x): return P(x).y",
        "assert f(1) == 2",
    ),
    "a data class": (
        "from dataclasses import dataclass, asdict\n"
        "@dataclass(order=True)\nclass P:\n x: int\n y: int = 2\n"
        "def f(): return asdict(max(P(1), P(3)))",
        "assert f() == {'x': 3, 'y': 2}",
    ),
    "a generator": (
        "def g(n):\n yield from range(n)\ndef f(n): return sum(g(n))",
        "assert f(5) == 10",
    ),
    "threads": (
        "import threading\nout = []\ndef work(i): out.append(i * i)\n"
        "def f(n):\n ts = [threading.Thread(target=work, args=(i,)) for i in range(n)]\n"
        " [t.start() for t in ts]; [t.join() for t in ts]\n return sorted(out)",
        "assert f(16) == [i * i for i in range(16)]",
    ),
    "a pool of threads": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def f():\n with ThreadPoolExecutor(4) as p: return list(p.map(abs, [-1, -2]))",
        "assert f() == [1, 2]",
    ),
    "asyncio": (
        "import asyncio\nasync def g(x):\n await asyncio.sleep(0.01)\n return x\n"
        "async def h(): return await asyncio.gather(g(1), g(2))\ndef f(): return asyncio.run(h())",
        "assert f() == [1, 2]",
    ),
    "a cache": (
        "from functools import lru_cache\n@lru_cache(None)\n"
        "def f(n): return n if n < 2 else f(n - 1) + f(n - 2)",
        "assert f(90) == 2880067194370816120",
    ),
    "recursion": (
        "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)",
        "assert f(20_000) == 20_000",
    ),
    "random": ("import random\ndef f():\n random.seed(1)\n return random.randint(1, 9)",
               "assert f() == 3"),
    "collections": (
        "from collections import Counter, defaultdict, deque\n"
        "def f(s):\n d = defaultdict(list)\n for k, v in Counter(s).items(): d[v].append(k)\n"
        " return deque(sorted(d[2])).popleft()",
        "assert f('aabbc') == 'a'",
    ),
    "heapq and bisect": (
        "import bisect, heapq\n"
        "def f(x):\n heapq.heapify(x)\n y = [heapq.heappop(x) for _ in range(len(x))]\n"
        " return y, bisect.bisect(y, 2)",
        "assert f([3, 1, 2]) == ([1, 2, 3], 2)",
    ),
    "itertools and functools": (
        "import functools, itertools, operator\n"
        "def f(n):\n pairs = itertools.combinations(range(1, n), 2)\n"
        " return [functools.reduce(operator.mul, pair) for pair in pairs]",
        "assert f(4) == [2, 3, 6]",
    ),
    "dates": (
        "from datetime import datetime, timedelta\n"
        "def f(s):\n day = datetime.strptime(s, '%Y-%m-%d') + timedelta(days=1)\n"
        " return day.strftime('%d.%m.%Y')",
        "assert f('2024-02-28') == '29.02.2024'",
    ),
    "regular expressions and strings": (
        "import re, string\n"
        "def f(s): return re.sub(r'[' + string.punctuation + ']', '', s).title().split()",
        "assert f('ab, cd!') == ['Ab', 'Cd']",
    ),
    "json and hashes": (
        "import base64, hashlib, json\n"
        "def f(x): return base64.b64encode(hashlib.sha256(json.dumps(x).encode()).digest())[:4]",
        "assert f([1]) == b'CAqe'",
    ),
    "numbers": (
        "import cmath, math, statistics\nfrom decimal import Decimal\n"
        "from fractions import Fraction\n"
        "def f(): return (math.isqrt(10**20), abs(cmath.exp(1j * math.pi) + 1) < 1e-9,"
        " statistics.median([3, 1, 2]), Decimal('0.1') * 3 == Decimal('0.3'), Fraction(1, 3) * 3)",
        "assert f() == (10**10, True, 2, True, 1)",
    ),
    "typing and enum": (
        "import enum\nfrom typing import *\nclass C(enum.Enum):\n a = 1\nT = TypeVar('T')\n"
        "def f(x: Optional[List[int]] = None) -> Dict[str, int]: return {C(1).name: C.a.value}",
        "assert f() == {'a': 1}",
    ),
    "a module that is not common": (
        "import zipfile, xml.etree.ElementTree as E, sqlite3\n"
        "def f():\n c = sqlite3.connect(':memory:')\n"
        " return c.execute('select 1 + 1').fetchone(), E.fromstring('<a><b/></a>')[0].tag",
        "assert f() == ((2,), 'b')",
    ),
    "a temporary file": (
        "import tempfile, os\n"
        "def f():\n with tempfile.TemporaryDirectory() as d:\n  p = os.path.join(d, 'x')\n"
        "  open(p, 'w').write('abc')\n  return open(p).read(), os.listdir(d)",
        "assert f() == ('abc', ['x'])",
    ),
    "time": (
        "import time, signal\n"
        "def f():\n t = time.perf_counter()\n time.sleep(0.02)\n return time.perf_counter() - t",
        "assert 0.01 < f() < 5",
    ),
    "a signal handler": (
        "import signal, time\nseen = []\nsignal.signal(signal.SIGALRM, lambda *a: seen.append(1))\n"
        "def f():\n signal.setitimer(signal.ITIMER_REAL, 0.01)\n time.sleep(0.1)\n return seen",
        "assert f() == [1]",
    ),
    "a main guard": (
        "def f(x): return x\nif __name__ == '__main__': print(f(input()))",
        "assert f(2) == 2",
    ),
    "prints": ("def f(x):\n print('debug', x)\n return x", "assert f(2) == 2"),
    "the null device": (
        "import contextlib, os\n"
        "def f():\n with open(os.devnull, 'w') as n, contextlib.redirect_stdout(n): print(1)\n"
        " return 2",
        "assert f() == 2",
    ),
    "much output": ("def f():\n for i in range(10**5): print(i)\n return 1", "assert f() == 1"),
    "much data": ("def f(n): return list(range(n))", "assert sum(f(200_000)) == 19999900000"),
    "many calls": ("def f(x): return x + 1", "assert all(f(i) == i + 1 for i in range(5000))"),
    "the stated exception": (
        "def f(x):\n if x < 0: raise ValueError('negative')\n return x ** 0.5",
        "assert f(4) == 2\ntry: f(-1)\nexcept ValueError as e: assert str(e) == 'negative'\n"
        "else: assert False",
    ),
}  # fmt: skip

# name: (script, standard input, standard output)
SCRIPTS: dict[str, tuple[str, str, str]] = {
    "a sum": ("a, b = map(int, input().split())\nprint(a + b)", "1 2\n", "3\n"),
    "a loop over lines": (
        "import sys\nprint(max(map(int, sys.stdin.readlines())))", "3\n9\n4\n", "9"),
    "a main function": (
        "import sys\ndef main():\n n = int(input())\n print(n * n)\n return 0\n"
        "if __name__ == '__main__': sys.exit(main())", "7", "49"),
    "fast input": (
        "import io, os, sys\ninput = io.BytesIO(os.read(0, os.fstat(0).st_size)).readline\n"
        "n = int(input())\nsys.stdout.write(str(sum(int(input()) for _ in range(n))))",
        "2\n3\n4\n", "7"),
    "a deep recursion in a thread": (
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 26)\n"
        "def d(n): return 0 if n == 0 else 1 + d(n - 1)\n"
        "t = threading.Thread(target=lambda: print(d(30_000))); t.start(); t.join()",
        "", "30000"),
    "a thread that prints last": (
        "import threading, time\ndef late():\n time.sleep(0.05)\n print('late')\n"
        "threading.Thread(target=late).start(); print('early')", "", "early\nlate"),
    "an exit function": (
        "import atexit\natexit.register(print, 'bye')\nprint('hi')", "", "hi\nbye"),
    "os._exit": ("import os\nprint(1, flush=True)\nos._exit(0)", "", "1"),
    "the end of input": (
        "try:\n while True: print(int(input()) + 1)\nexcept EOFError: pass", "1\n2\n", "2\n3"),
    "asyncio": ("import asyncio\nasync def m(): print(await asyncio.sleep(0, 5))\nasyncio.run(m())",
                "", "5"),
    "pickled classes": (
        "import pickle\nclass A:\n x = 3\nprint(pickle.loads(pickle.dumps(A())).x)", "", "3"),
}  # fmt: skip
