"""Where the labels of a drawn picture go: near their boxes, inside the picture, and off one another where there is room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Size = tuple[int, int]  # width, height in pixels
Rectangle = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels; x1 and y1 lie outside

MAX_LABEL_SHARE = 0.1  # of the picture's area, for one label
HIDDEN_SHARE = 0.25  # of a box; a label that covers less of it does no harm


class LabelLayout:
    """Places strips of text one after the other, each knowing those before it."""

    def __init__(self, picture: Size, boxes: Sequence[Rectangle]):
        """`boxes` are all boxes of the picture; they count where a strip would cover much of one."""
        self.picture = picture
        self.boxes = boxes
        self.taken: list[Rectangle] = []

    def place(self, strip: Size, box: Rectangle, overlap: bool = True) -> Rectangle | None:
        """The place for a strip that belongs to `box`: the first of `corners` that hides least.

        None where the strip is too large for the picture or, without `overlap`, where it would hide something anywhere.
        """
        width, height = strip
        room = (self.picture[0] - width, self.picture[1] - height)
        if min(room) < 0 or width * height > MAX_LABEL_SHARE * self.picture[0] * self.picture[1]:
            return None
        inside = [(min(max(x, 0), room[0]), min(max(y, 0), room[1])) for x, y in corners(strip, box)]
        best = min(((x, y, x + width, y + height) for x, y in inside), key=self._hidden)
        if not overlap and self._hidden(best):
            return None
        self.taken.append(best)
        return best

    def _hidden(self, strip: Rectangle) -> int:
        """Pixels of other labels, and of boxes of which it covers a large share, that lie below the strip."""
        over_boxes = [(_common(strip, box), HIDDEN_SHARE * _common(box, box)) for box in self.boxes]
        over_labels = sum(_common(strip, other) for other in self.taken)
        return over_labels + sum(pixels for pixels, harmless in over_boxes if pixels > harmless)


def corners(strip: Size, box: Rectangle) -> Iterator[tuple[int, int]]:
    """The places tried, best first: above, inside at the top, below, inside at the bottom, then others near; left, then right."""
    width, height = strip
    x0, y0, x1, y1 = box
    others = [y0 + row * height for row in range(1, 5)]
    for y in (y0 - height, y0, y1, y1 - height, *others, y0 - 2 * height, y1 + height):
        yield x0, y
        yield x1 - width, y


def _common(a: Rectangle, b: Rectangle) -> int:
    """Pixels that two rectangles share."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
