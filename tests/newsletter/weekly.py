"""The post that the size and looks of a mail are tried on: 1,500 words with three blocks of code."""

import re
from pathlib import Path

from newsletter.demo import seed

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CONTENT = Path(seed.__file__).parent / "content"


def long_post(*, words: int = 1500, codes: int = 3) -> str:
    """Return Markdown of so many words of prose and so many blocks of code, made of the demo's posts."""
    bodies = [path.read_text("utf-8").split("---\n", 2)[2] for path in sorted(CONTENT.glob("*.md"))]
    kept = iter(FENCE.findall("\n\n".join(bodies))[:codes])
    text = FENCE.sub(lambda found: next(kept, ""), "\n\n".join(bodies))
    blocks, count = [], 0
    for block in re.split(r"\n\n+(?=\S)", text):
        if count < words:
            blocks.append(block)
            count += 0 if block.startswith("```") else len(block.split())
    return "\n\n".join(blocks)


ONE_OF_EVERYTHING = """Hello, with a [link](https://example.com/a), `code` and a note.[^1] See [the table](#the-table).

## Code

```python
@cache
def claim(size: int = 50, *, lease: str = "60 seconds", patience_in_seconds_before_giving_up: float = 0.5) -> list[Job]:
    return [Job(row) for row in fetch(size)]  # what others hold is passed over
```

```sql
SELECT id FROM jobs WHERE state = 'pending' LIMIT 50 FOR UPDATE SKIP LOCKED;
```

```text
averylongwordwithoutanyplacewhereitcouldbebroken_averylongwordwithoutanyplacewhereitcouldbebroken
```

### The table

| Queue | Messages/s | p50 | p99 | Survives a crash | Notes |
|:--|--:|--:|--:|:-:|---|
| table, eight workers | 13,900 | 6 ms | 31 ms | yes | no index speaks of `state` |
| list in memory | 61,000 | 1 ms | 4 ms | no | fast, and gone after a restart |

> [!WARNING]
> A lease is a promise about time.

> Quoted words.

![A chart](/media/chart.png)

1. https://example.com/notes/2026/11/why-autovacuum-could-not-keep-up-with-a-table-that-is-a-queue-and-what-we-did/
2. two
   - deeper

---

The end.[^1]

[^1]: The note, with `code`.
"""
