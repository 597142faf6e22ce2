"""The command line: it reads arguments, calls one verb's module, prints the result."""

from __future__ import annotations

import itertools
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from overproof import __version__
from overproof.core.console import note
from overproof.core.digest import pretty
from overproof.outcome import finish, guarded, options, print_text

# Verbs are imported where they are called: `verify`, `terms`, `keys` and `doctor` work, and
# `--help` is quick, without torch.

HELP_WIDTH = 80  # columns

SETTINGS = {"max_content_width": HELP_WIDTH, "help_option_names": ["-h", "--help"]}
app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)
keys_app = typer.Typer(rich_markup_mode=None, context_settings=SETTINGS)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override a field of the recipe; repeatable."),
]


def main() -> None:
    """The entry point of the command `overproof`."""
    # `docker stop`, systemd and `timeout` end it as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(dispatch(sys.argv[1:]))


def dispatch(arguments: Sequence[str]) -> int:
    """Run one command line.

    Returns:
        the exit code: 0 done, 1 failed, 2 usage, 3 checked and rejected, 130 interrupted.
    """
    command = typer.main.get_command(app)
    words = list(arguments) or ["--help"]
    return guarded(
        lambda: command.main(words, prog_name="overproof", standalone_mode=False),
        as_json="--json" in itertools.takewhile(lambda word: word != "--", words),
    )


def _version(wanted: bool) -> None:
    if wanted:
        print_text(f"overproof {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Distil a small, fast language model on your own hardware, and prove where it came from.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 checked and rejected, 130 interrupted.
    """


@app.command(short_help="Distil a flash model from a teacher, and prove it.")
def distill(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe that ships, or a .yaml file.")
    ] = "support",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the run.")] = Path("out"),
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Private key to sign with; else the key `default`."),
    ] = None,
    overrides: Overrides = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="LIMITS",
            help="Choose layers, MLPs and heads to fit: "
            "latency=5ms,memory=100MB,parameters=60M,for=FILE.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="auto|ADDRESS",
            help="Sample and train on the Ray cluster that runs here, or on that of HOST:PORT.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, time and memory; run nothing.")
    ] = False,
    print_schema: Annotated[
        bool, typer.Option("--print-schema", help="Print the recipe's JSON Schema.")
    ] = False,
    as_json: Json = False,
) -> int:
    """The main job, stage after stage: from records and a teacher to a release with its proof.

    Run it again after a stop: finished work is kept.

    \b
    Examples:
      overproof distill
      overproof distill support --dry-run
      overproof distill my.yaml --out out/mine --key ~/keys/release.key
      overproof distill support --set train.steps=200 --set seed=1
      overproof distill support --budget parameters=40M --dry-run
      overproof distill my.yaml --out /shared/mine --ray auto
    """
    if print_schema:
        from overproof.core.recipe import Recipe

        print_text(pretty(Recipe.model_json_schema()))
        return 0
    from overproof import pipeline as verb
    from overproof.core.limits import overrides_of

    limits = overrides_of(budget) if budget is not None else []
    config = verb.Config(
        recipe=recipe,
        out=out,
        key=key,
        overrides=(*limits, *(overrides or ())),
        ray=ray,
        dry_run=dry_run,
    )
    return finish(verb, verb.run(config), as_json)


@app.command(short_help="Measure what shapes cost on this machine.")
def plan(
    measure: Annotated[Path, typer.Option(metavar="FILE", help="Where to write it.")],
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Whose base the shapes are taken from.")
    ] = "support",
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the machine; else its network name.")
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> int:
    """Measure what shapes cost on this machine, for `overproof distill --budget`.

    Models of random weights are decoded in the engine that builds are timed in; a line
    is fitted and written with its residuals. Takes some minutes on a quiet machine.

    \b
    Examples:
      overproof plan --measure laptop.json --name laptop
      overproof plan mine.yaml --measure hardware/phone.json
    """
    from overproof.release import plan as verb

    with options():
        config = verb.Config(
            measure=measure, recipe=recipe, name=name, overrides=tuple(overrides or ())
        )
    return finish(verb, verb.run(config), as_json)


@app.command(short_help="Certify a training set.")
def certify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL or Parquet.")],
    licence: Annotated[
        str | None,
        typer.Option(metavar="SPDX", help="Licence of records that name none."),
    ] = None,
    origin: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Origin of records that name none.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the data set.  [default: out/certified/NAME]"),
    ] = None,
    exclude: Annotated[
        Path | None,
        typer.Option(metavar="DATASET", help="Certified data set whose records are refused."),
    ] = None,
    personal_data: Annotated[
        Literal["reject", "warn"], typer.Option(help="What a finding of personal data does.")
    ] = "reject",
    max_record_bytes: Annotated[
        int, typer.Option(metavar="BYTES", help="Longest canonical record.")
    ] = 65_536,
    as_json: Json = False,
) -> int:
    """Certify a training set: a licence, a checked state and a key for every record.

    Nothing is lost: rejected records are written with the reason.

    \b
    Examples:
      overproof certify requests.jsonl --licence CC0-1.0
      overproof certify train.parquet --exclude out/certified/heldout
    """
    from overproof.data import certify as verb

    with options():
        config = verb.Config(
            file=file,
            licence=licence,
            origin=origin,
            out=out,
            exclude=exclude,
            personal_data=personal_data,
            max_record_bytes=max_record_bytes,
        )
    return finish(verb, verb.run(config), as_json)


@app.command(short_help="Verify a release, offline.")
def verify(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Folder with proof/ in it.")],
    signer: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Public key that the release must be signed with."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Verify a release: every file, statement, log entry, input and obligation, offline.

    Without --signer a release is at best consistent, signer unknown: exit code 3.

    \b
    Examples:
      overproof verify out/demo/release --signer out/demo/keys/demo.pub
      overproof verify out/demo/release --signer demo.pub --json
    """
    from overproof.trust import verify as verb

    return finish(verb, verb.run(verb.Config(release, signer, as_json)), as_json)


@app.command(short_help="Say what a teacher's terms allow.")
def terms(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub name, API name, path or builtin:NAME.")
    ],
    channel: Annotated[
        Literal["weights", "api", "consumer"], typer.Option(help="How you use the model.")
    ] = "weights",
    on: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], metavar="DATE", help="Judge for this day, not today."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Say what a teacher's terms allow: verdict, clause, obligations and source.

    \b
    Examples:
      overproof terms builtin:smollm2-135m-instruct
      overproof terms gpt-4o --channel api
      overproof terms meta-llama/Llama-3.1-8B-Instruct --on 2026-11-24 --json
    """
    from overproof.policy import terms as verb

    with options():
        config = verb.Config(model=model, channel=channel, on=on.date() if on else None)
    return finish(verb, verb.run(config), as_json)


@app.command(short_help="Ask a release's flash model a question.")
def ask(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Folder of a release.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask.")],
    max_tokens: Annotated[int, typer.Option(metavar="TOKENS", help="Longest answer.")] = 256,
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="FLOAT",
            help="0 takes the most likely token each time. Default: as the teacher's answers "
            "were drawn.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="INT", help="Seed of the draws.")] = 0,
    as_json: Json = False,
) -> int:
    """Ask a release's flash model a question and watch it answer.

    \b
    Examples:
      overproof ask out/demo/release "My card was charged twice."
      overproof ask out/demo/release "Cancel my trip" --temperature 0.7 --seed 1
    """
    from overproof.release import ask as verb

    with options():
        config = verb.Config(
            release=release,
            question=question,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )
    if as_json:
        return finish(verb, verb.run(config), as_json)
    result = verb.run(config, verb.to_stdout)
    print_text("")  # the answer is on the screen already; this ends its last line
    note(f"{result.build}: {result.decode_tokens_per_second:,.0f} tokens/s")
    return result.exit_code


app.add_typer(keys_app, name="keys", short_help="Make or list signing keys.")


@keys_app.callback()
def keys() -> None:
    """Make or list signing keys: ECDSA P-256, `NAME.key` (private, mode 0600) and `NAME.pub`."""


KeyFolder = Annotated[
    Path | None,
    typer.Option("--dir", metavar="DIR", help="Folder of the keys; else your configuration's."),
]


@keys_app.command("new")
def keys_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the key.")] = "default",
    folder: KeyFolder = None,
    as_json: Json = False,
) -> int:
    """Make a signing key; nothing is ever overwritten.

    \b
    Examples:
      overproof keys new
      overproof keys new release --dir ~/keys
    """
    from overproof.trust import keys as verb

    return finish(verb, verb.run(verb.Config("new", name, folder)), as_json)


@keys_app.command("show")
def keys_show(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One key; else all of them.")
    ] = None,
    folder: KeyFolder = None,
    as_json: Json = False,
) -> int:
    """Show public keys, their SHA-256 and whether the private half is safe.

    \b
    Examples:
      overproof keys show
      overproof keys show demo --dir out/demo/keys --json
    """
    from overproof.trust import keys as verb

    return finish(verb, verb.run(verb.Config("show", name, folder)), as_json)


@app.command(short_help="Tell what this machine can do.")
def doctor(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="Try this recipe on a few prompts instead."),
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> int:
    """Tell what this machine can do and what is missing, with the exact remedy.

    With a recipe: answer eight of its prompts and check what goes wrong silently later, such as
    the chat template, the end of answers, the sampler and the loss. Takes a minute.

    Exit code 0 if `overproof distill` can run here, 1 if not.

    \b
    Examples:
      overproof doctor
      overproof doctor --json
      overproof doctor support
      overproof doctor mine.yaml --set sample.max_new_tokens=160
    """
    from overproof import doctor as verb

    return finish(
        verb, verb.run(verb.Config(recipe=recipe, overrides=tuple(overrides or ()))), as_json
    )


if __name__ == "__main__":
    main()
