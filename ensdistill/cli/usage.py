"""The texts of ``ensdistill --help`` and of the commands' own ``--help``."""

USAGE = """\
ensdistill: any ensemble in, one small fast model out, with proof of how much of the ensemble it kept.

    teachers ──► cache ──► student ──► report

  ensdistill run CONFIG           the whole job, up to the report
  ensdistill teachers CONFIG      train, calibrate and weigh the ensemble
  ensdistill cache build CONFIG   and run it once over the transfer set
  ensdistill distill CONFIG       and train the students and their baselines
  ensdistill report CONFIG        and judge them: table, report.json, report.html
  ensdistill cache info FOLDER    what a target cache holds, and how exact it is
  ensdistill cache verify FOLDER  read all of it and check every byte (`ensdistill cache --help`: what else can be done with one)
  ensdistill info                 what is built and what runs here
  ensdistill bench                time the losses on this machine (`ensdistill bench --help`)

Each of the job's commands does what is missing before it, skips what is finished and unchanged, and goes on where a killed
one stopped. Anything in CONFIG can be overridden:

  ensdistill run examples/digits.yaml --seeds 5 --distill.loss.temperature 2 --distill.students.mlp.optimization.steps 2000

`ensdistill run --help` explains every setting; `ensdistill run CONFIG --print_config` prints them as they are. Your own models and
data sets come in by import path (class_path, init_args); the current folder is importable.
"""
JOBS = {
    "run": "The whole job: trains the ensemble, asks it once about the transfer set, trains the students and their baselines, and reports "
    "what was kept.",
    "teachers": "Trains the ensemble's members, calibrates and weighs them by held-out predictions, and stops there. Writes "
    "seed-*/teachers/ in the run's folder. Of the settings it reads data, teachers, seeds, workers and threads; the others may be there.",
    "cache build": "Builds the transfer set, asks the ensemble about it once, and stores the answers; trains the teachers first where they "
    "are missing or changed. Writes seed-*/cache/ in the run's folder. Of the settings it reads cache and what `teachers` reads.",
    "distill": "Trains the students from the cache, and their baselines on the labels; makes what is missing before that. Writes "
    "seed-*/distill/ and seed-*/direct/ in the run's folder. No report: `ensdistill report CONFIG` makes it.",
    "report": "Judges the students on the test rows: prints the table and writes report.json, report.html and figures/ in the run's "
    "folder; makes what is missing before that, like `run`.",
}
OTHERS = {
    "cache": """\
usage: ensdistill cache COMMAND ...     `ensdistill cache COMMAND --help` explains each

  build CONFIG [--SETTING VALUE ...]    ask the ensemble once about the transfer set and store its answers
  info FOLDER                           what a target cache holds, and how exact it is
  verify FOLDER                         read all of it and check every byte; --against-teachers 0.1% asks them again
  add-member FOLDER OUT ...             a copy with one member more, whose logits are in a file
  drop-member FOLDER OUT --name NAME    a copy with one member less
  reweight FOLDER MEMBER=WEIGHT ...     other weights, in place (a job's next run undoes it: reweight a copy)
  convert FOLDER OUT --codec CODEC      the same targets in another codec, or only their mixture (--mixture-at T)
  export FOLDER FILE.parquet            for other tools
  push FOLDER URL, pull URL FOLDER      to and from s3://, gs://, ...: whatever fsspec knows
""",
    "info": """\
usage: ensdistill info

What is built (CPU instruction sets, CUDA architectures, torch versions) and what of it runs on this machine.
""",
}
