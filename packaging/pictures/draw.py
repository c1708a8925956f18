#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
#
# usage: draw.py TITLE <SCREEN >PICTURE.svg
#
# Draws a terminal's screen, as `tmux capture-pane -e -p` has it, by Rich (Debian's
# python3-rich). `go test ./cmd/flatctl -run Picture -update` does this for README.md.
import io
import re
import sys

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

# Light on dark, so that it is legible on pages of either kind.
THEME = TerminalTheme(
    (22, 27, 34),
    (230, 237, 243),
    [(72, 79, 88), (255, 123, 114), (126, 231, 135), (227, 179, 65),
     (121, 192, 255), (210, 168, 255), (118, 227, 234), (230, 237, 243)],
)

# No font is fetched: whatever the reader has of one width will do.
FONTS = 'ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace'
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
FORMAT = FORMAT.replace("Fira Code, monospace", FONTS)

screen = Text.from_ansi(sys.stdin.read().rstrip("\n"))
columns = max(80, *(line.cell_len for line in screen.split()))
console = Console(record=True, file=io.StringIO(), force_terminal=True, width=columns)
console.print(screen, end="\n\n")  # or the last line's letters are cut off below
picture = console.export_svg(title=sys.argv[1], theme=THEME, code_format=FORMAT, unique_id="flatctl")

# Bars have no gaps, be the reader's font narrower than the columns.
picture = picture.replace(" textLength=", ' lengthAdjust="spacingAndGlyphs" textLength=')
sys.stdout.write("\n".join(line.rstrip() for line in picture.splitlines() if line.strip()) + "\n")
