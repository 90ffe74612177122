"""Pages with pictures: what `inspect`, `verify` and `bench` write with --html.

page.py         what a page is made of, and the HTML of it (skeleton.html, skeleton.css)
library.py      matplotlib, imported when a picture is made and not before
sheet.py        a picture to draw on, in the sizes of a desk and of a telephone
inline_svg.py   the SVG that matplotlib writes, as a part of a page
palette.py      the colours, which the page defines for light and for dark
bars.py         bars with their numbers beside them
*_page.py       the page of a command; every other module draws one picture of it

The pictures are made from the facts that --json gives. Each page is one file: no script, no other address.
"""
