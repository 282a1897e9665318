"""What tools/style.py counts."""

import pytest
import scripts

PAGE = """# A heading that nobody counts

One two three. Four `code with spaces` five [six](seven.md#eight nine)! **Bold** et al. (2019) ends.

- An item goes on
  here.
- Told, unless told.

| a table | is told |
|---|---|

<!-- a comment -->
    python -m no.prose --at=all

```python
told = "likewise"
```

![A picture that is told](picture.png)
The last one
"""
SOURCE = '''
STEPS = setting("a default", "so many steps. Or more", free=True)
SEED = shared("seed", "no text", short="of all")
NAME = other("a default", "not a setting")


def check(n):
  """Told in a docstring."""
  if n:
    raise errors.UserError(f"got {n} of " "them: mend it" if n > 1 else "one. is told")
  raise ValueError("told")
'''


@pytest.fixture(scope="module")
def style():
  return scripts.load("tools/style.py")


def test_a_page(style, tmp_path):
  (tmp_path / "page.md").write_text(PAGE)
  blocks = style.markdown(PAGE)
  assert [sentence for block in blocks for sentence in style.sentences(block)] == [
    "One two three.",
    "Four code five six!",
    "Bold et al. (2019) ends.",
    "An item goes on here.",
    "Told, unless told.",
    "The last one",
  ]
  assert style.report(tmp_path / "page.md") == {
    "sentences": 6,
    "mean": 23 / 6,  # 3, 4, 5, 5, 3 and 3 words
    "longest": 5,
    "text": "Bold et al. (2019) ends.",
    "worn": {"goes on": 1, "unless told": 1, "told": 1},
  }


def test_help_and_messages(style, tmp_path):
  assert style.python(SOURCE) == [
    "so many steps. Or more",
    "of all",
    "got X of them: mend it",
    "one. is told",
  ]
  (tmp_path / "flags.py").write_text(SOURCE)
  found = style.report(tmp_path / "flags.py")
  assert found["worn"] == {"mend": 1, "so many": 1, "told": 1}
  assert (found["sentences"], found["longest"]) == (6, 6)


def test_nothing_is_gated(style, tmp_path, capsys):
  page = tmp_path / "page.md"
  page.write_text("It is told. " + "word " * 46)
  style.main([str(page)])
  said = capsys.readouterr().out.splitlines()
  assert said[1] == f"{2:9} {24.5:6.1f} {46:7}  {page}"
  assert said[2].strip().startswith("long: word word")
  assert said[3].strip() == "worn: told (1): reported, shown"
  page.write_text("Five words are enough here.")
  style.main([str(page)])
  assert len(capsys.readouterr().out.splitlines()) == 2
