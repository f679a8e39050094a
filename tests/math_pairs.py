r"""Answers beside references, written by hand: what must count as equal and what must not."""


def pairs(text: str) -> list[tuple[str, str]]:
    """`reference | answer` on each line, headings behind a #."""
    lines = [line.partition(" |") for line in text.splitlines() if line and line[0] != "#"]
    return [(gold, answer.strip()) for gold, _, answer in lines]


EQUAL = pairs(
    r"""
# numbers
1000 | 1,000
10,\!080 | 10080
58,500 | 58500
1234567 | 1{,}234{,}567
11,\! 111,\! 111,\! 100 | 11111111100
10\,000 | 10000
5 | 5.0
5 | +5
-3 | −3
0.5 | 1/2
\frac{1}{2} | 0.5
.35625 | 0.35625
3 | 3.
0.0000672 | 6.72 \times 10^{-5}
6.72e-5 | .0000672
1.2 \cdot 10^{4} | 12000
1000000 | 10^6
18 | 18.00
007 | 7
-0 | 0
# fractions
\frac{1}{2} | \frac12
\frac 34 | \dfrac{3}{4}
\frac9{19} | 9/19
\frac{270}7 | \tfrac{270}{7}
-\frac{3}{8} | \frac{-3}{8}
-3/8 | \frac{3}{-8}
1\frac{4}{5} | 1.8
137 \frac{1}{2} | 137.5
\frac{9}{5} | 1 4/5
\frac{2}{4} | \frac{1}{2}
½ | 0.5
\cfrac{1}{3} | \frac{1}{3}
# units, money, percent, degrees
\$36 | 36
\$18.90 | 18.9
$5.00 | 5
36 | \$36.00
\$32,\!348 | 32348
15\mbox{ cm}^2 | 15
864 \mbox{ inches}^2 | 864 \text{ square inches}
5.4 \text{ cents} | 5.4
18 | 18 dollars
18 dollars | \$18
10 | 10 hours
12 | 12 \text{ apples per day}
5 | 5 cm
2\sqrt{3} | 2\sqrt{3} \text{ cm}
50\% | 50
50% | 50 percent
30^\circ | 30
\frac{270}7\text{ degrees} | \frac{270}{7}^\circ
90° | 90^{\circ}
5 | \text{5 cm}
1,000 | 1000 \text{ m}
20 | 20\ \text{km/h}
7 | €7
5000000 | 5 million
5 million | 5,000,000
5000000 | 5 \text{ million}
5000000 | \text{5 million}
5000000 | \$5 \text{ million}
\$5 \text{ million} | 5000000
\$2.5 \text{ million} | 2.5\text{ million dollars}
2500000 | 2.5 million people
500 | 5 hundred
500000 | 5 hundred thousand
60 | 5 dozen eggs
60 | 5 dozens of eggs
2000000000 | 2 \text{ billion}
\frac{1}{2} \text{ million} | 500000
\$36 | \$36 \text{ per hour}
\$36 | \text{\$}36
# LaTeX
\left( 3, \frac{\pi}{2} \right) | (3,\frac{\pi}{2})
8 \pi | 8\pi
8\pi | 8π
2 \sqrt{5} | 2\sqrt5
x | $x$
x | \(x\)
3\sqrt{13} | 3 \sqrt {13}
x^2 | x^{2}
5 | \displaystyle 5
5 | {5}
4210_{5} | 4210_5
x | x.
\sqrt{51} | sqrt(51)
\pi | pi
\mathrm{x} | x
\text{x} | x
# algebra
\sqrt{8} | 2\sqrt{2}
\frac{\sqrt{3}}{3} | \frac{1}{\sqrt{3}}
8 | 2^3
x^2-1 | (x-1)(x+1)
(a+5)(b+2) | ab + 2a + 5b + 10
p - q | -q + p
2 | \sqrt{4}
11 \sqrt{5} + 11 | 11(\sqrt{5}+1)
\cot x | \frac{\cos x}{\sin x}
6-5i | -5i+6
\frac{11+9a}{20} | 0.05(11+9a)
3 | \log_2 8
-1 | i^2
3R^2 | R^2 \cdot 3
2k+2 | 2(k+1)
\frac{20000}{\pi} | 20000/\pi
x^{-1} | \frac{1}{x}
\frac{1}{2}x | \frac{x}{2}
1+274i | 274 i + 1
5r^5 | 5 r^{5}
e^2 | e^{2}
\sqrt{12} | \sqrt{3(4)}
6\sqrt{5} | 2(3)\sqrt{5}
\frac{\sqrt{11}}{2} | \sqrt{2\frac{3}{4}}
2 | \log_{10}(100)
2 | \sqrt[3]{8}
# equations and relations
5 | x=5
x=5 | 5
x=5 | x = 5.0
y = 2x + 3 | 2x+3
2x+3 | f(x)=2x+3
5 | 2+3=5
(1,2) | (x,y)=(1,2)
y=2x+3 | 2x+3=y
x<5 | 5>x
120 | \angle ABC = 120
5x - 7y + 11z + 4 = 0 | 10x-14y+22z+8=0
x \le 3 | x \leq 3
x \in [-2,7] | [-2,7]
[-2,7] | -2 \le x \le 7
[-2,7) | 7 > x \ge -2
(-2,7] | -2 < x \le 7
-2 < x \le 7 | (-2,7]
(2,\infty) | 2 < x
(2,\infty) | 2 < x < \infty
(-\infty,\pi) | x < \pi
[2,\infty) | f(x) \ge 2
(0,\pi) | 0 < \theta < \pi
(a,b) | a < x < b
(-\infty,2)\cup(2,\infty) | x \ne 2
x \ne 2 | (-\infty,2)\cup(2,\infty)
(-\infty,2)\cup(5,\infty) | x<2 \cup x>5
x^2 < 4 | (-2,2)
18 | \text{Total} = 18
x=1 | 1
# lists, sets, tuples, intervals, matrices
1,-2 | -2, 1
3, 5, 7 | 3,5, and 7
1, 2 | 1 \text{ or } 2
\{1,2\} | 2, 1
x=1, x=-2 | 1 and -2
1 \pm \sqrt{19} | 1+\sqrt{19}, 1-\sqrt{19}
1,2 | x=1 or x=2
\{1\pm\sqrt{5},-2\} | -2, 1 - \sqrt5, 1+\sqrt5
3 \pm 2 \sqrt{2} | x = 3 \pm \sqrt{8}
(2,4) | ( 2 , 4.0 )
(-\infty, 0] | (-\infty,0]
(2,\infty) | (2, ∞)
((3)) | 3
(0,9) \cup (9,36) | (9,36)\cup(0,9)
(\frac{1}{2}, 3) | (0.5,3)
(5,\infty) | x > 5
\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix} | \begin{bmatrix} 0.2 \\ -3.6 \end{bmatrix}
\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} | \begin{pmatrix}-1&0\\[2mm]0&-1\\\end{pmatrix}
# words
\text{(B)} | B
\text{(B)} | (B)
\text{Evelyn} | Evelyn
\text{even} | Even
\text{east} | \textbf{east}
east | East.
(C) | \text{C}
\text{yes} | Yes
"""
)

DIFFERENT = pairs(
    r"""
# numbers
1,000 | (1,000)
(1,000) | 1000
5 | 6
5 | -5
1000 | 1
100 | 1,00
\frac{1}{3} | 0.333
\frac{1}{3} | 0.33333333
.0000672 | .0000671
3.21 | 3.2
5 | 5, 6
5 | 56
12 | 1 2
0 |
0 | .
10 | 1e
9 | 9**9
9 | 9**9**9**9
2516_8 | 2516
2516_8 | 2516_9
40_9 | 36
1 | \infty
10 | 10^{10}
3 | 3x
3 | x
\pi | 3.14
\pi | 3.14159265358979323846
2^{-60} | 3^{-40}
\sqrt{2} | 1.41421356
1/2 | 2/1
1\frac{4}{5} | \frac{14}{5}
# units
50\% | 0.5
50\% | \frac{1}{2}
\$36 | 36^\circ
36^\circ | 36\%
5.4 \text{ cents} | \$5.4
18 dollars | 18 degrees
10 hours | 11 hours
5 | 5 million
5 million | 5
5 million | 5 billion
5 | 5 hundred
5 | 5 dozen
5 | \$5 \text{ million}
5 | 5 \text{ million dollars}
5 | 5\text{ thousand}
5 | 5\text{6}
5 | 5\text{ or 6}
5 | \$\text{1 or 2 or 3 or }5
5 | \$5 \text{ or } 6
5 | 5 \text{ times 3}
5 | \$5 \text{ times 3}
5 | \$5\text{6}
15 | \text{1}5
# work left undone
5 | 2+3
9 | 16-3-4
24 | 4 \cdot 6
24 | 4!
10 | \binom{5}{2}
120 | 5!
\frac{1}{3} | \int_0^1 x^2 dx
55 | \sum_{k=1}^{10} k
18 | (16-3-4)*2
7 | |3|+|4|
12 | |3|\cdot|4|
3 | |-3|
6 | \gcd(12,18)
8 | \lfloor \sqrt{80} \rfloor
24 | \max(24, 3)
\frac12 | \cos\frac{\pi}{3}
-1 | e^{i\pi}
# numbers side by side: no sum, and a product left undone
72 | 48 24
72 | 48(24)
1152 | 48(24)
7 | 3(4)
12 | 3(4)
12 | (3)(4)
12 | (3)4
12 | {3}{4}
7 | {3}{4}
12 | 3{4}
12 | \sqrt{9}4
12 | \sqrt{9}{4}
12 | 3^{1}{4}
12 | \frac{1}{2}24
12 | \frac{1}{2}(24)
12 | 3\left(4\right)
12 | 3 4 5
12 | 2(10)
25.8 | 25 .8
90 | 10 080
\sqrt{7} | \sqrt{3(4)}
\sqrt{1.5} | \sqrt{2\frac{3}{4}}
(1,7) | (1, 3 4)
(1,12) | (1, 3(4))
# algebra
x | \sqrt{x^2}
3R^2 | 3r^2
x^2-1 | (x-1)^2
p - q | q - p
\cot x | \tan x
2\sqrt{3} | 3\sqrt{2}
6-5i | 6+5i
2k | 2
x+1 | y+1
ab | a+b
\frac{\sqrt{3}}{3} | \sqrt{3}
x^{12} | x^1 2
\sin x | \sin y
11\sqrt2 | 11
# equations and relations
x=5 | y=5
10 | x^2 = 10
5 | 5 = x
5 | 2+2=5
x<5 | x \le 5
x<5 | x>5
5 | x<5
y = 2x + 3 | y = 2x - 3
5x + 4 = 0 | 5x + 4
x=5 | x>5
5 | x \ne 5
# an inequality that is not solved
(-6,5) | x^2+x-30<0
[-1,5] | x^2-4x-5\le 0
(-\infty,2) | 3x-2<4
(-\infty,2) | -x>-2
(-5,1) | |x+2|<3
(-\infty,-2)\cup(2,\infty) | |x|>2
(-1,7) | -2 < 2x < 14
(-2,7) | -2 < x < 3+4
(-2,7) | -2 < x \le 7
(-2,7) | 7 < x < -2
(-2,7) | -2 < x > 7
(-2,7) | x < 7
x<2 | 3x-2<4
# lists, sets, tuples, intervals, matrices
(2,4) | (4,2)
(2,4) | 2,4
(2,4) | [2,4]
(3,4] | [3,4)
1,2 | 1,2,3
1,2 | 1
1,2 | 1,1
1,1,2 | 1,2,2
(1,2) | (1,2,3)
(2,\infty) | x \ge 2
(0,9) \cup (9,36) | (0,36)
1 \pm \sqrt{19} | 1 + \sqrt{19}
\{1,2\} | (1,2)
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 2 \\ 1 \end{pmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 1 & 2 \end{pmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | (1,2)
[1,2] | x=1,2
5 | [5]
# words
\text{(B)} | C
\text{(B)} | A, B
\text{east} | seat
east | seat
\text{even} | odd
\text{Evelyn} | Eve
\text{yes} | no
\text{(B)} | (B) or (C)
"""
)
