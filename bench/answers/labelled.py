"""How well `same_answer` and `math-verify` tell same answers from others, on hand-labelled pairs.

python bench/answers/labelled.py                  ours
python bench/answers/labelled.py --math-verify    that package's, where it is installed (pip install math-verify)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from pairs import DEVELOPED, HELD


def ours() -> Callable[[str, str], bool]:
    from veritune.data.answers import same_answer

    return same_answer


def math_verify() -> Callable[[str, str], bool]:
    """Gold first, each as a model would write it: in a box."""
    from math_verify import parse, verify

    return lambda a, b: bool(verify(parse(f"$\\boxed{{{a}}}$"), parse(f"$\\boxed{{{b}}}$")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--math-verify", action="store_true")
    same = math_verify() if parser.parse_args().math_verify else ours()
    for name, pairs in (("developed", DEVELOPED), ("held", HELD)):
        wrong = [(a, b, label) for a, b, label in pairs if same(a, b) != label]
        missed, false = sum(label for *_, label in wrong), sum(not label for *_, label in wrong)
        print(
            f"{name}: {len(pairs) - len(wrong)} of {len(pairs)} right; {false} others called the same, {missed} missed"
        )
        for a, b, label in wrong:
            print(f"  {a!r} and {b!r}: labelled {'same' if label else 'other'}")


if __name__ == "__main__":
    main()
