SUFFIXES = [-2.5] * 2 + [
    (-1.5 if sh < 3 else -2.5) + 0.6 * L for _ in range(2) for L in range(7) for sh in range(9)
]
ROWS = [0, -0.7] + [1.5, -0.2, -0.8, -1.2, -1.5, -1.6, -1.8, -2] * 2
