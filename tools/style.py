#!/usr/bin/env python3
"""Reports how our text reads: sentence lengths and worn phrases, file by file.  It gates nothing.

  python tools/style.py                      # README, docs, and the commands' help and messages
  python tools/style.py docs/faq.md          # one file

In Markdown, prose counts; code blocks, tables, headings, pictures and link targets do not.  In
Python, the texts of settings and the messages of `errors.UserError` count.  See docs/style.md.
"""

import argparse
import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Words a sentence: the aim is a mean below the one, and none above the other.
MEAN, LONGEST = 18, 45
# What makes a setting, and how many arguments come before its texts: see urkle_tf/settings.py.
SETTINGS = {"setting": 1, "Setting": 1, "shared": 2}
WORN = {  # what to look for: what to write
  r"(go|goes|going|went) on\b": "resume, continue",
  r"mend(s|ed)?\b": "fix",
  r"unless (told|given)": "by default",
  r"(?<!unless )told\b": "reported, shown",
  r"likewise": "also, similarly",
  r"(is|are) none\b": "say what it is",
  r"be it\b": "whether",
  r"but for\b": "except for",
  r"begun|afresh|anew": "started, again",
  r"so many\b": "the number, or 'this many'",
  r"without a word": "silently",
  r"of (your|its|their|my) own(?=[.,;:)]|$| (and|or|is|are|in|on|to)\b)": "your own X",
  r"somebody's|anybody's": "another, any",
  r"stands? or falls?": "say what decides",
  r"as it stands|as they stand": "unchanged",
  r"say nothing|says nothing": "is not informative",
  r"in place of\b": "instead of",
  r"to speak of\b": "leave out",
  r"(in order|so as) to\b": "to",
  r"simply|just|basically|obviously|of course": "leave out",
  r"(utili[sz]e|leverage)[sd]?\b": "use",
}


def markdown(text):
  """The prose of a Markdown page: a list of paragraphs and list items."""
  text = re.sub(r"^```.*?^```|<!--.*?-->", "\n\n", text, flags=re.MULTILINE | re.DOTALL)
  text = re.sub(r"^(    |#|\||!\[).*$", "", text, flags=re.MULTILINE)
  text = re.sub(r"(`+).+?\1", "code", text)
  text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
  blocks = re.split(r"\n\s*\n|^\s*(?:[-*]|\d+\.) ", text.replace("**", ""), flags=re.MULTILINE)
  return [" ".join(block.split()) for block in blocks if block.strip()]


def python(source):
  """The texts of settings and the messages of UserError: a list of texts."""
  found = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("UserError"):
      found += node.args
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in SETTINGS:
      found += node.args[SETTINGS[ast.unparse(node.func)] :]
      found += [keyword.value for keyword in node.keywords if keyword.arg in ("text", "help")]
  return [text for node in found for text in _literals(node)]


def _literals(node):
  """Each string in an expression, with X for what is filled in."""
  if isinstance(node, ast.JoinedStr):
    return ["".join(p.value if isinstance(p, ast.Constant) else "X" for p in node.values)]
  if isinstance(node, ast.Constant):
    return [node.value] if isinstance(node.value, str) else []
  return [text for child in ast.iter_child_nodes(node) for text in _literals(child)]


def sentences(text):
  """Cuts where a full stop, question or exclamation mark is followed by a space."""
  return re.split(r"(?<=[.!?])(?<!et al\.)(?<!eq\.)(?<!e\.g\.)(?<!i\.e\.)[)\"*]*\s+", text)


def words(sentence):
  """How many words a sentence has: runs without spaces that hold a letter or a digit."""
  return len(re.findall(r"\S*\w\S*", sentence))


def report(path):
  """What a file's sentences are like.

  Returns:
    {"sentences": their number, "mean" and "longest": words, "text": the longest one,
    "worn": {phrase that was found: count}}.
  """
  text = path.read_text(encoding="utf-8")
  blocks = python(text) if path.suffix == ".py" else markdown(text)
  found = [sentence for block in blocks for sentence in sentences(block) if words(sentence)]
  lengths = [words(sentence) for sentence in found]
  longest = max(found, key=words, default="")
  worn = {}
  for pattern in WORN:
    for match in re.finditer(rf"\b(?:{pattern})", " ".join(blocks), flags=re.IGNORECASE):
      worn[match[0].lower()] = worn.get(match[0].lower(), 0) + 1
  mean = sum(lengths) / max(1, len(lengths))
  figures = {"sentences": len(found), "mean": mean, "longest": max(lengths, default=0)}
  return {**figures, "text": longest, "worn": worn}


def main():
  """Prints a line for each file, its longest sentence if it is too long, and its worn phrases."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("files", nargs="*", type=pathlib.Path, help="default: README, docs, code")
  files = parser.parse_args().files
  if missing := [file for file in files if not file.is_file()]:
    parser.error(f"no such file: {missing[0]}")
  if not files:
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    files += sorted((ROOT / "urkle_tf").rglob("*.py"))
  print(f"{'sentences':>9} {'mean':>6} {'longest':>7}")
  for file in files:
    found = report(file)
    if not found["sentences"]:
      continue
    print(f"{found['sentences']:9} {found['mean']:6.1f} {found['longest']:7}  {file}")
    if found["mean"] >= MEAN or found["longest"] > LONGEST:
      print(f"{'':26}long: {found['text'][:100]}")
    for phrase, count in found["worn"].items():
      better = next(b for p, b in WORN.items() if re.match(p, phrase))
      print(f"{'':26}worn: {phrase} ({count}): {better}")


if __name__ == "__main__":
  main()
