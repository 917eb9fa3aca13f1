# Draws what a program leaves on a terminal as an SVG picture, colours included. Needs tmux.
# Called as: terminal_svg.py OUT.svg TITLE PROGRAM [ARGUMENT ...]
import html
import re
import shlex
import subprocess
import sys
import time

COLUMNS, LINES, WIDTH, HEIGHT = 104, 46, 8.4, 18
NAMED = {30: "#1e1e2e", 31: "#f38ba8", 32: "#a6e3a1", 33: "#f9e2af", 34: "#89b4fa", 35: "#cba6f7", 36: "#89dceb",
         37: "#cdd6f4", 90: "#6c7086"}


def capture(command):
    session = f"svg{time.time_ns()}"
    done = "tmux wait-for -S " + session
    line = f"clear; {shlex.join(command)}; {done}; sleep 60"
    subprocess.run(["tmux", "-f", "/dev/null", "new-session", "-d", "-s", session, "-x", str(COLUMNS), "-y", str(LINES),
                    "env", "COLORTERM=truecolor", "LANG=C.UTF-8", "sh", "-c", line], check=True)
    subprocess.run(["tmux", "wait-for", session], check=True, timeout=600)
    time.sleep(0.3)
    text = subprocess.run(["tmux", "capture-pane", "-e", "-p", "-S", "-200", "-t", session], check=True, capture_output=True,
                          text=True).stdout
    subprocess.run(["tmux", "kill-session", "-t", session], check=True)
    return text.rstrip("\n").split("\n")


def color256(index):
    if index < 16:
        return NAMED[(30 if index < 8 else 82) + index] if (30 if index < 8 else 82) + index in NAMED else "#cdd6f4"
    if index >= 232:
        return "#%02x%02x%02x" % ((8 + 10 * (index - 232),) * 3)
    index -= 16
    return "#%02x%02x%02x" % tuple(0 if v == 0 else 55 + 40 * v for v in (index // 36, index // 6 % 6, index % 6))


def extended(codes, i):
    if codes[i + 1] == 5:
        return color256(codes[i + 2]), i + 3
    return "#%02x%02x%02x" % tuple(codes[i + 2:i + 5]), i + 5


def spans(line):
    """(column, text, foreground, background, bold) of each run of one style; the style carries over between lines."""
    column = 0
    for escape, text in re.findall(r"\x1b\[([0-9;:]*)m|([^\x1b]+)", line):
        if text:
            yield column, text, spans.foreground, spans.background, spans.bold
            column += len(text)
            continue
        codes = [int(code or 0) for code in re.split("[;:]", escape)]
        i = 0
        while i < len(codes):
            code = codes[i]
            i += 1
            if code == 0:
                spans.foreground, spans.background, spans.bold = "#cdd6f4", None, False
            elif code == 1:
                spans.bold = True
            elif code == 2:
                spans.foreground = "#9399b2"
            elif code == 38:
                spans.foreground, i = extended(codes, i - 1)
            elif code == 48:
                spans.background, i = extended(codes, i - 1)
            elif code == 39:
                spans.foreground = "#cdd6f4"
            elif code == 49:
                spans.background = None
            elif code in NAMED:
                spans.foreground = NAMED[code]


def main(out, title, *command):
    spans.foreground, spans.background, spans.bold = "#cdd6f4", None, False
    lines = capture(command)
    height = HEIGHT * (len(lines) + 3)
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{COLUMNS * WIDTH + 32:.0f}" height="{height}" '
           f'font-family="ui-monospace,Menlo,Consolas,DejaVu Sans Mono,monospace" font-size="14">',
           f'<rect width="100%" height="100%" rx="10" fill="#1e1e2e"/>',
           f'<text x="16" y="24" fill="#7f849c">$ {html.escape(title)}</text>']
    for row, line in enumerate(lines):
        y = HEIGHT * (row + 2.6)
        for column, text, foreground, background, bold in spans(line):
            if not text.strip() and not background:
                continue
            x, width = 16 + column * WIDTH, len(text) * WIDTH
            # Half blocks meet exactly as rectangles; as glyphs they would leave seams.
            if set(text) == {"▀"}:
                svg.append(f'<rect x="{x:.1f}" y="{y - 14:.1f}" width="{width:.1f}" height="9" fill="{foreground}"/>')
                if background:
                    svg.append(f'<rect x="{x:.1f}" y="{y - 5:.1f}" width="{width:.1f}" height="9" fill="{background}"/>')
                continue
            weight = ' font-weight="bold"' if bold else ""
            svg.append(f'<text x="{x:.1f}" y="{y:.1f}" fill="{foreground}"{weight} textLength="{width:.1f}" '
                       f'xml:space="preserve">{html.escape(text)}</text>')
    svg.append("</svg>")
    with open(out, "w") as file:
        file.write("\n".join(svg) + "\n")


main(*sys.argv[1:])
