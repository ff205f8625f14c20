"""`minqkv learn`, `minqkv lesson ...`, and the start page."""

import sys

import click

from ..runtime.errors import Exit, UsageError
from .options import print_json, reports, stages

_no_pause = click.option(
    "--no-pause", is_flag=True, help="Ask nothing; implied where no terminal is."
)


def _desk():
    """(lessons, progress), with a word on stderr where a damaged progress file was set aside."""
    from ..teach.lessons import course
    from ..teach.progress import Progress

    progress = Progress()
    if progress.message:
        click.echo(f"minqkv: {progress.message}", err=True)
    return course(), progress


def _chosen(name):
    """(the lesson of this name, or the one the learner is at; progress)."""
    from ..teach.lessons import find
    from ..teach.progress import next_thing

    lessons, progress = _desk()
    return find(name, lessons) if name else next_thing(lessons, progress)[0] or lessons[
        -1
    ], progress


def start_page():
    """Where you are, what comes next, and the few commands worth knowing."""
    from ..teach.progress import next_thing

    lessons, progress = _desk()
    lesson, action = next_thing(lessons, progress)
    passed = sum(progress.done(each) for each in lessons)
    click.echo("minqkv: attention with shared projections, to be read end to end\n")
    click.echo(f"Course: {passed} of {len(lessons)} lessons done")
    if lesson is None:
        click.echo("Next:   minqkv study    (everything the lessons taught, measured)\n")
    else:
        step = f"step {progress.seen(lesson) + 1} of {len(lesson.steps)}"
        what = {"play": step, "start": "its exercise", "check": "your answer"}[action]
        click.echo(f"        lesson {lesson.number}, {lesson.title}: {what}")
        click.echo(f"        {lesson.question}")
        click.echo("Next:   minqkv learn\n")
    for command, does in (("minqkv lesson list", "the lessons, and where you are"),
                          ("minqkv trace forward", "every array of one attention call"),
                          ("minqkv study", "train ten variants and compare them"),
                          ("minqkv --help", "all commands")):  # fmt: skip
        click.echo(f"  {command:21} {does}")


@click.command()
@_no_pause
@stages
@reports
@click.pass_context
def learn(ctx, as_json, **options):
    """Go on with the course.

    Plays the lesson you are at, then hands out its exercise, then checks it.
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
    """Lessons: list, play, and exercises that are checked."""


@lesson.command("list")
@reports
def list_lessons(as_json):
    """The lessons, and where you are."""
    from ..teach.lessons import fingerprint

    lessons, progress = _desk()
    rows = []
    for each in lessons:
        state = f"step {progress.seen(each)}/{len(each.steps)}" if progress.seen(each) else ""
        if progress.done(each):
            newer = progress.of(each)["passed"] != fingerprint(each)
            state = "done (older)" if newer else "done"
        rows.append(
            {
                "number": each.number,
                "name": each.name,
                "title": each.title,
                "minutes": each.minutes,
                "state": state,
            }
        )
    if as_json:
        print_json(rows)
        return
    for row in rows:
        line = f"{row['number']:2}  {row['title']}"
        click.echo(
            f"{line:36} {row['minutes']:3} min  {row['state']}".rstrip()
            if len(line) <= 36
            else f"{line}  {row['state']}"
        )
    if any("older" in row["state"] for row in rows):
        click.echo(
            "older: the check has changed since; minqkv lesson check NUMBER tries your answer again"
        )


@lesson.command()
@click.argument("name", required=False)
@click.option("--step", type=click.IntRange(1), help="Begin here.  [default: where you stopped]")
@_no_pause
@stages
@reports
def play(name, as_json, plain, no_pause, svg, step=None):
    """Step through a lesson: a number or a name."""
    from ..render.lesson import choose, export
    from ..teach.desk import hint
    from ..teach.runner import Player

    chosen, progress = _chosen(name)
    if step and step > len(chosen.steps):
        raise UsageError(
            f"lesson {chosen.number} has {len(chosen.steps)} steps",
            f"minqkv lesson play {chosen.number}",
        )
    stage = choose(plain, as_json, not no_pause)
    pause = getattr(stage, "interactive", False)
    seen = (
        progress.seen(chosen) if pause else 0
    )  # without pauses nothing is learnt, and nothing recorded
    whole = seen == len(chosen.steps)  # read again, it stays read
    begin = step - 1 if step else 0 if whole else seen
    if not as_json and begin == 0:
        stage.draw(
            {
                "event": "prose",
                "text": f"# Lesson {chosen.number}: {chosen.title}\n\n{chosen.question}",
            }
        )
    saw = (lambda n: progress.update(chosen, step=n)) if pause and not whole else (lambda n: None)
    player = Player(chosen, stage, saw, lambda: hint(chosen, progress))
    try:
        finished = player.play(begin, pause)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "the position is kept; go on with: minqkv learn" if pause else ""
        ) from None
    if svg:
        export(svg, f"minqkv lesson play {chosen.number}", stage.drawn)
    if not as_json:
        after = f"minqkv lesson start {chosen.number}" if finished else "minqkv learn"
        click.echo(f"{'The end.' if finished else 'The position is kept.'} Next: {after}")


@lesson.command()
@click.argument("name", required=False)
@reports
def start(name, as_json):
    """Put the exercise into minqkv-work/."""
    from ..teach import desk

    chosen, progress = _chosen(name)
    path, new = desk.start(chosen, progress)
    if as_json:
        print_json({"file": str(path), "new": new, "write": chosen.exercise})
        return
    click.echo(f"{path}{'' if new else ' is there already, and stays as it is'}")
    click.echo(
        f"Write {' and '.join(chosen.exercise)} there; then: minqkv lesson check {chosen.number}"
    )


@lesson.command()
@click.argument("name", required=False)
@click.option(
    "--watch", is_flag=True, help="Check again whenever the file changes, until it passes."
)
@click.option("--plain", is_flag=True, help="No colour.")
@reports
def check(name, as_json, watch=False, plain=False):
    """Check your answer on random cases."""
    from ..render.lesson import choose
    from ..teach import desk
    from ..teach.progress import next_thing

    chosen, progress = _chosen(name)
    stage = choose(plain, as_json)

    def draw(events):
        for event in events:
            stage.draw(event)

    if watch:
        desk.watch(chosen, progress, draw)
    else:
        passed, events = desk.check(chosen, progress)
        draw(events)
        if not passed:
            return Exit.CHECK_FAILED
    if not as_json:
        following = next_thing(_desk()[0], progress)[0]
        click.echo(f"The solution, to compare: minqkv lesson solution {chosen.number}")
        click.echo(
            "Next: minqkv learn" if following else "That was the last lesson. Next: minqkv study"
        )
    return None


@lesson.command()
@click.argument("name", required=False)
@reports
def hint(name, as_json):
    """A hint; one more each time."""
    from ..render.lesson import choose
    from ..teach import desk

    chosen, progress = _chosen(name)
    text = desk.hint(chosen, progress)
    if as_json:
        print_json({"hint": text})
    else:
        choose().draw({"event": "say", "text": text})


@lesson.command()
@click.argument("name", required=False)
@click.option("--spoil", is_flag=True, help="Before a pass, too.")
@reports
def solution(name, as_json, spoil):
    """The solution, once yours passes."""
    from ..teach import desk

    chosen, progress = _chosen(name)
    path = desk.solution(chosen, progress, spoil)
    text = path.read_text("utf-8")
    print_json({"file": str(path), "text": text}) if as_json else click.echo(
        f"{text}\n# kept in {path}"
    )


@lesson.command()
@click.argument("name", required=False)
@reports
def reset(name, as_json):
    """Begin a lesson afresh; your file is kept aside."""
    from ..teach import desk

    chosen, progress = _chosen(name)
    backup = desk.reset(chosen, progress)
    if as_json:
        print_json({"lesson": chosen.name, "backup": backup and str(backup)})
        return
    click.echo(
        f"Lesson {chosen.number} begins afresh." + (f" Your file is now {backup}" if backup else "")
    )


@lesson.group()
def dev():
    """For authors of lessons."""


@dev.command("check")
@click.argument("names", nargs=-1)
@reports
def dev_check(names, as_json):
    """Prove that lessons keep their promises."""
    from ..teach.author import check_lesson, untaught_variants
    from ..teach.lessons import course, find

    lessons = course()
    report = {
        each.name: check_lesson(each, lessons)
        for each in ([find(name, lessons) for name in names] or lessons)
    }
    if not names:
        report["the course"] = {
            "variants": [f"no lesson teaches {name}" for name in untaught_variants(lessons)]
        }
    if as_json:
        print_json(report)
    for name, promises in {} if as_json else report.items():
        click.echo(
            f"{name}: {sum(not faults for faults in promises.values())} of {len(promises)} promises kept"
        )
        for promise, faults in promises.items():
            for fault in faults:
                click.echo(f"  {promise}: {fault}")
    return (
        Exit.CHECK_FAILED
        if any(faults for promises in report.values() for faults in promises.values())
        else None
    )


@dev.command("readme")
def dev_readme():
    """Print lessons/README.md from the metadata."""
    from ..teach.author import readme
    from ..teach.lessons import course

    sys.stdout.write(readme(course()))


COMMANDS = (learn, lesson)
