"""`minqkv learn`, `minqkv lesson ...` with its hunts, and the start page."""

import click

from ..runtime.errors import EnvironmentFault, Exit, UsageError
from .options import Known, echo, print_json, reports, stages


def _known(exercises):
    return [each.key for each in exercises] + [each.name.partition("_")[2] for each in exercises]


def _numbers():
    from ..teach.lessons import course, hunts

    return _known(course() + hunts())


def _hunts():
    from ..teach.lessons import hunts

    return _known(hunts())


_WHICH = "NAME is a number (6, or h3 for a hunt) or a name; without it, your current lesson."
_lesson = click.argument("name", required=False, type=Known(_numbers))
_no_pause = click.option(
    "--no-pause", is_flag=True, help="Ask nothing (automatic when not in a terminal)."
)


def _desk():
    """(lessons, progress), with a word on stderr where progress is lost or not kept."""
    from ..teach.lessons import course
    from ..teach.progress import Progress

    return course(), Progress(tell=lambda text: click.echo(f"minqkv: {text}", err=True))


def _chosen(name):
    """(the lesson or hunt of this name, or the lesson the learner is at; progress)."""
    from ..teach.lessons import find, hunts
    from ..teach.progress import next_thing

    lessons, progress = _desk()
    if name:
        return find(name, lessons + hunts()), progress
    return next_thing(lessons, progress)[0] or lessons[-1], progress


def start_page():
    """Where you are, what comes next, and the few commands worth knowing."""
    from ..teach.progress import next_thing

    lessons, progress = _desk()
    lesson, action = next_thing(lessons, progress)
    passed = sum(progress.done(each) for each in lessons)
    echo("minqkv: attention with shared projections, written to be read from end to end")
    click.echo()
    click.echo(f"Course: {passed} of {len(lessons)} lessons done")
    if lesson is None:
        echo("Next:   minqkv study    (everything the lessons taught, measured)", indent=8)
        click.echo()
    else:
        step = f"step {progress.seen(lesson) + 1} of {len(lesson.steps)}"
        what = {"play": step, "start": "its exercise", "check": "your answer"}[action]
        echo(f"        lesson {lesson.number}, {lesson.title}: {what}", indent=8)
        echo(f"        {lesson.question}", indent=8)
        click.echo("Next:   minqkv learn\n")
    for command, does in (
        ("minqkv lesson list", "the lessons, and where you are"),
        ("minqkv lesson hunt", "short programs, each with a bug to find"),
        ("minqkv trace forward", "every array computed in one attention call"),
        ("minqkv study", "train every variant and compare them"),
        ("minqkv --help", "all commands"),
    ):
        echo(f"  {command:21} {does}", indent=24)


@click.command()
@_no_pause
@stages
@reports
@click.pass_context
def learn(ctx, as_json, **options):
    """Continue the course.

    Plays your current lesson, then gives you its exercise, then checks your answer.
    """
    from ..teach.progress import next_thing

    lessons, progress = _desk()
    lesson, action = next_thing(lessons, progress)
    if lesson is None:
        if as_json:
            print_json({"next": None})
        else:
            click.echo("Every lesson is done. To measure what they taught: minqkv study")
        return None
    if action == "play":
        return ctx.invoke(play, name=lesson.name, as_json=as_json, **options)
    if action == "check":
        return ctx.invoke(check, name=lesson.name, as_json=as_json, plain=options["plain"])
    return ctx.invoke(start, name=lesson.name, as_json=as_json)


@click.group()
def lesson():
    """Lessons: list and play them, and check your exercises."""


@lesson.command("list")
@reports
def list_lessons(as_json):
    """The lessons, and where you are."""
    from ..teach.lessons import still_counts

    lessons, progress = _desk()
    rows = []
    for each in lessons:
        seen, steps = progress.seen(each), len(each.steps)
        state = f"step {seen + 1} of {steps}" if seen < steps else "exercise"
        state = state if seen else ""
        if progress.done(each):
            counts = still_counts(each, progress.of(each)["passed"])
            state = "done" if counts else "done (older)"
        fields = {name: getattr(each, name) for name in ("number", "name", "title", "minutes")}
        rows.append(fields | {"state": state})
    if as_json:
        print_json(rows)
        return
    for row in rows:
        line = f"{row['number']:2}  {row['title']}"
        minutes = f"{row['minutes']:3} min  " if len(line) <= 36 else ""
        click.echo(f"{line:36} {minutes}{row['state']}".rstrip())
    if any("older" in row["state"] for row in rows):
        again = "minqkv lesson check NUMBER tries your answer again"
        click.echo(f"older: the check has changed since you passed it; {again}")


@lesson.command(epilog=_WHICH)
@_lesson
@click.option("--step", type=click.IntRange(1), help="Begin here.  [default: where you stopped]")
@_no_pause
@stages
@reports
def play(name, as_json, plain, no_pause, svg, step=None):
    """Step through a lesson."""
    from ..render.lesson import choose, export
    from ..teach.desk import hint
    from ..teach.runner import Player

    chosen, progress = _chosen(name)
    if not chosen.steps:
        hint = f"it is started with: minqkv lesson hunt {chosen.key}"
        raise UsageError(f"{chosen.key} is a hunt, which has no steps to play", hint)
    again = f"minqkv lesson play {chosen.number}"
    if step and step > len(chosen.steps):
        raise UsageError(f"lesson {chosen.number} has {len(chosen.steps)} steps", again)
    stage = choose(plain, as_json, not no_pause)
    pause = getattr(stage, "interactive", False)
    seen = progress.seen(chosen) if pause else 0  # without pauses nothing is recorded
    whole = seen == len(chosen.steps)  # read again, it stays read
    begin = step - 1 if step else 0 if whole else seen
    if not as_json and begin == 0:
        text = f"# Lesson {chosen.number}: {chosen.title}\n\n{chosen.question}"
        stage.draw({"event": "prose", "text": text})
    saw = (lambda n: progress.update(chosen, step=n)) if pause and not whole else (lambda n: None)
    player = Player(chosen, stage, saw, lambda: hint(chosen, progress))
    try:
        finished = player.play(begin, pause)
    except KeyboardInterrupt:
        kept = f"your place is saved; continue with: {again}" if pause and progress.kept else ""
        raise KeyboardInterrupt(kept) from None
    if svg:
        export(svg, again, stage.drawn)
    if as_json:
        print_json(stage.drawn)
    else:
        after = f"minqkv lesson start {chosen.number}" if finished else again
        end = "Your place is saved." if progress.kept else "You have not reached the end."
        click.echo(f"{'The end.' if finished else end} Next: {after}")


@lesson.command(epilog=_WHICH)
@_lesson
@reports
def start(name, as_json):
    """Copy the exercise to minqkv-work/."""
    from ..teach import desk

    chosen, progress = _chosen(name)
    path, new = desk.start(chosen, progress)
    if as_json:
        print_json({"file": str(path), "new": new, "write": chosen.exercise})
        return
    click.echo(f"{path}{'' if new else ' already exists; unchanged'}")
    names, do = " and ".join(chosen.exercise), "Write" if chosen.steps else "Repair"
    click.echo(f"{do} {names} there; then: minqkv lesson check {chosen.key}")


@lesson.command(epilog=_WHICH)
@_lesson
@click.option(
    "--watch", is_flag=True, help="Check again whenever the file changes, until it passes."
)
@click.option("--plain", is_flag=True, help="No colour.")
@reports
def check(name, as_json, watch=False, plain=False):
    """Check your answer on random cases.

    It runs in a separate process, with limits on time, memory, output, open files and processes.
    What it starts ends with the check.
    """
    from ..render.lesson import choose
    from ..teach import desk
    from ..teach.lessons import course
    from ..teach.progress import next_thing

    chosen, progress = _chosen(name)
    stage = choose(plain, as_json)
    if not desk.guard.HERE:
        click.echo(
            "On this system a check limits time, but not memory, output or processes.", err=True
        )

    def draw(events):
        for event in events:
            stage.draw(event)

    passed = True  # where `watch` ends
    if watch:
        desk.watch(chosen, progress, draw)
    else:
        passed, events = desk.check(chosen, progress)
        draw(events)
    if as_json:
        print_json(stage.drawn)
    elif passed:
        click.echo(f"The solution, to compare: minqkv lesson solution {chosen.key}")
        last = next_thing(course(), progress)[0] is None
        after = "That was the last lesson. Next: minqkv study" if last else "Next: minqkv learn"
        click.echo(after if chosen.steps else "The other hunts: minqkv lesson hunt")
    return None if passed else Exit.CHECK_FAILED


@lesson.command(epilog="NAME is a number (3 or h3) or a name; without it, all hunts are listed.")
@click.argument("name", required=False, type=Known(_hunts))
@click.option("--plain", is_flag=True, help="No colour.")
@reports
def hunt(name, as_json, plain=False):
    """Find the bug: a gallery of short programs that are wrong.

    Each has a mistake of a kind that was reported in real software. A hunt copies its program to
    minqkv-work/ and shows the law that it breaks, with numbers. Repair it; `minqkv lesson check`,
    `hint` and `solution` then work as they do for lessons.
    """
    from ..render.lesson import choose
    from ..teach import desk
    from ..teach.events import quoted
    from ..teach.lessons import find, hunts

    progress = _desk()[1]
    if not name:
        return _gallery(hunts(), progress, as_json)
    chosen = find(f"h{name}" if name.isdecimal() else name, hunts())
    path, new = desk.start(chosen, progress)
    title = f"# Hunt {chosen.key}: {chosen.title}\n\n{chosen.question}"
    events = [{"event": "prose", "text": title}]
    events += [quoted(path.read_text("utf-8"))] if new else []
    stage = choose(plain, as_json)
    for event in events + desk.check(chosen, progress)[1]:
        stage.draw(event)
    if as_json:
        print_json(stage.drawn)
    return None


def _gallery(hunts, progress, as_json):
    rows = []
    for each in hunts:
        state = "started" if progress.file(each).exists() else ""
        state = "found" if progress.done(each) else state
        rows.append({"number": each.key, "name": each.name, "title": each.title, "state": state})
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(f"{row['number']:>3}  {row['title']:38} {row['state']}".rstrip())
    left = [row["number"] for row in rows if row["state"] != "found"]
    click.echo(f"{len(rows) - len(left)} of {len(rows)} found.", nl=not left)
    if left:
        click.echo(f" Next: minqkv lesson hunt {left[0]}")


@lesson.command(epilog=_WHICH)
@_lesson
@reports
def hint(name, as_json):
    """Give the next hint."""
    from ..render.lesson import choose
    from ..teach import desk

    chosen, progress = _chosen(name)
    text = desk.hint(chosen, progress)
    if as_json:
        print_json({"hint": text})
    else:
        choose().draw({"event": "say", "text": text})


@lesson.command(epilog=_WHICH)
@_lesson
@click.option("--spoil", is_flag=True, help="Show it even before your code passes.")
@reports
def solution(name, as_json, spoil):
    """Show the solution, once your code passes."""
    from ..teach import desk

    chosen, progress = _chosen(name)
    text = chosen.companion("solution").read_text("utf-8")
    try:
        path = desk.solution(chosen, progress, spoil)
        where = f"saved as {path}"
    except EnvironmentFault as error:
        path, where = None, f"not saved: {error}"
    if as_json:
        print_json({"file": path and str(path), "text": text})
    else:
        click.echo(f"{text}\n# {where}")


@lesson.command(epilog=_WHICH)
@_lesson
@reports
def reset(name, as_json):
    """Start a lesson over; your file is kept as a backup."""
    from ..teach import desk

    chosen, progress = _chosen(name)
    backup = desk.reset(chosen, progress)
    if as_json:
        print_json({"lesson": chosen.name, "backup": backup and str(backup)})
        return
    moved = f" Your file is now {backup}" if backup else ""
    click.echo(f"{'Lesson' if chosen.steps else 'Hunt'} {chosen.key} starts over.{moved}")


_FOLDER = "Write web pages to a new or empty folder, or replace an earlier export."


@lesson.command("export")
@click.option("--html", "pages", type=click.Path(), metavar="DIR", help=_FOLDER)
@click.option(
    "--notebook",
    "notebooks",
    type=click.Path(),
    metavar="DIR",
    help="Write Jupyter notebooks likewise. A notebook that you changed is never replaced.",
)
@reports
def export_course(pages, notebooks, as_json):
    """Write the lessons as web pages or as notebooks, one for each.

    They need no network. Each lesson is run for its arrays and numbers, which takes about a minute;
    where one trains a model, it trains for a few steps only.
    """
    from ..render.progress import progress
    from ..teach.export import export, export_notebooks
    from ..teach.lessons import course

    if (pages is None) == (notebooks is None):
        raise UsageError("give either --html DIR or --notebook DIR", "--html course, for instance")
    folder = pages if notebooks is None else notebooks
    try:
        with progress("lessons", len(course())) as advance:
            files = (export if notebooks is None else export_notebooks)(folder, advance)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("nothing was written") from None
    if as_json:
        print_json({"folder": folder, "pages" if notebooks is None else "notebooks": files})
        return
    what, first = ("pages", "index.html") if notebooks is None else ("notebooks", files[0])
    click.echo(f"{len(files)} {what} in {folder}; the first is {folder}/{first}")


@lesson.group()
def dev():
    """Commands for lesson authors."""


@dev.command("check")
@click.argument("names", nargs=-1, type=Known(_numbers))
@reports
def dev_check(names, as_json):
    """Check lessons and hunts against the rules in AUTHORS.md."""
    from ..teach.author import check_lesson, untaught_variants
    from ..teach.lessons import course, find, hunts

    lessons, all_hunts = course(), hunts()
    chosen = [find(name, lessons + all_hunts) for name in names] or lessons + all_hunts
    report = {each.name: check_lesson(each, lessons) for each in chosen}
    if not names:
        untaught = [f"no lesson teaches {name}" for name in untaught_variants(lessons)]
        report["the course"] = {"variants": untaught}
    if as_json:
        print_json(report)
    for name, promises in {} if as_json else report.items():
        kept = sum(not faults for faults in promises.values())
        click.echo(f"{name}: {kept} of {len(promises)} promises kept")
        for promise, faults in promises.items():
            for fault in faults:
                click.echo(f"  {promise}: {fault}")
    broken = any(faults for promises in report.values() for faults in promises.values())
    return Exit.CHECK_FAILED if broken else None


@dev.command("readme")
@reports
def dev_readme(as_json):
    """Print lessons/README.md from the metadata."""
    from ..teach.author import readme
    from ..teach.lessons import course, hunts

    text = readme(course(), hunts())
    print_json({"text": text}) if as_json else click.echo(text, nl=False)


COMMANDS = (learn, lesson)
