"""What converting pictures to WebP saves and costs, and the hits beside it."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.figures.large import Watch
from benchmarks.figures.plan import KB, Figure, Plan, median
from benchmarks.load import Load, wrk
from benchmarks.stack import App, Unmeasurable, ask, backend, gunicorn

PICTURES = 20
SIDE = 1024
FORMATS = ("original", "webp")


def write_picture(path: Path) -> int:
    """Write a PNG of 2 MB, soft shapes under fine grain; return its bytes. Raises Unmeasurable."""
    try:
        from PIL import Image, ImageChops
    except ImportError:
        raise Unmeasurable("Pillow is missing: pip install -r requirements-formats.txt") from None
    size, grain = (SIDE, SIDE), Image.effect_noise((SIDE, SIDE), 14)
    channels = []
    for coarse in (128, 64, 32):
        shapes = Image.effect_noise((coarse, coarse), 60).resize(size, Image.Resampling.BICUBIC)
        channels.append(ImageChops.add(shapes, grain, 2))
    Image.merge("RGB", channels).save(path, "PNG")
    return path.stat().st_size


def draw_page(app: App) -> tuple[int, float]:
    """Draw a page of pictures; return its bytes, and the CPU seconds of each picture."""
    ask(app.picture("warm-up"))
    before, total = app.cpu_seconds(), 0
    for seed in range(PICTURES):
        answer = ask(app.picture("apple", seed))
        if answer.status != 200:
            raise Unmeasurable(f"a cold request was answered with {answer.status}")
        total += len(answer.body)
    return total, (app.cpu_seconds() - before) / PICTURES


def hits_beside_drawings(app: App, hit: str) -> Load:
    """Ask for a hit while new pictures are drawn, eight at a time."""
    watch = Watch(app)
    with watch.under_way():
        load = wrk(hit, 1, 2)
    if set(watch.statuses) != {200}:
        raise Unmeasurable(f"cold requests were answered with {watch.statuses}")
    return load


def pages_as_webp(plan: Plan) -> Iterator[Figure]:
    picture = plan.folder / "page.png"
    size = write_picture(picture)
    found = []
    with backend(picture=picture) as upstream:
        for name in FORMATS:
            folder = plan.folder / f"page-{name}"
            with gunicorn(folder, upstream.url, PICTURE_FORMAT=name) as app:
                found.append(draw_page(app))
    (before, plain), (after, converted) = found
    details = {"bytes of each PNG": size, "page before": before, "page after": after}
    title = f"bytes of {PICTURES} PNG pictures of 2 MB, as WebP ÷ before"
    yield Figure("formats", title, round(after / before, 3), 0.25, details=details)
    cost = {"CPU s of a drawing": [round(plain, 3), round(converted, 3)]}
    title = "… CPU of converting one of them"
    yield Figure("formats", title, round(converted - plain, 3), 0.5, "s", details=cost)
    yield beside_conversion(plan, picture)


def beside_conversion(plan: Plan, picture: Path) -> Figure:
    """Compare hits beside drawings that are converted and beside those that are not."""
    loads: dict[str, list[Load]] = {name: [] for name in FORMATS}
    with ExitStack() as stack:
        upstream = stack.enter_context(backend(delay=1.0, picture=picture))
        small = stack.enter_context(backend(50 * KB))
        apps, hits = {}, {}
        for name in FORMATS:
            folder = plan.folder / f"hits-{name}"
            with gunicorn(folder, small.url) as app:
                ask(app.picture("hit"))
            apps[name] = stack.enter_context(gunicorn(folder, upstream.url, PICTURE_FORMAT=name))
            hits[name] = apps[name].picture("hit")
        for _ in range(plan.loaded_rounds):
            for name in FORMATS:
                loads[name].append(hits_beside_drawings(apps[name], hits[name]))
    plain, converted = (loads[name] for name in FORMATS)
    ratio = median([one.p99 / other.p99 for one, other in zip(converted, plain, strict=True)])
    details = {
        "p99 ms": [[load.p99 for load in side] for side in (plain, converted)],
        "longest ms": max(load.longest for load in converted),
    }
    title = "… p99 of hits beside conversions ÷ beside drawings alone"
    return Figure("formats", title, ratio, 2.0, details=details)
