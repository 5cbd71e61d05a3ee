"""The texts of ``ensdistill --help`` and of the commands' own ``--help``."""

USAGE = """\
ensdistill: any ensemble in, one small fast model out, with proof of how much of
the ensemble it kept.

    teachers ──► cache ──► student ──► report

  ensdistill run CONFIG           the whole job, up to the report
  ensdistill teachers CONFIG      train, calibrate and weigh the ensemble
  ensdistill cache build CONFIG   and run it once over the transfer set
  ensdistill distill CONFIG       and train the students and their baselines
  ensdistill report CONFIG        and judge them: report.json, report.html
  ensdistill cache info FOLDER    a target cache's contents, and its exactness
  ensdistill cache verify FOLDER  read all of it and check every byte
  ensdistill info                 the build, and the parts that run here
  ensdistill bench                time the losses on this machine

Each of the job's commands makes missing stages before it, skips finished and
unchanged ones, and goes on where a killed one stopped. Every setting in CONFIG
can be overridden:

  ensdistill run examples/digits.yaml --seeds 5 --distill.loss.temperature 2

`ensdistill COMMAND --help` explains a command, `ensdistill run --help` every
setting, `ensdistill cache --help` all commands for a cache.
`ensdistill run CONFIG --print_config` prints the settings. Models and data sets
of your own come in by import path (class_path, init_args); the current folder
is importable.
"""
JOBS = {
    "run": (
        "The whole job: trains the ensemble, runs it once over the transfer set, trains the students and "
        "their baselines, and reports how much was kept."
    ),
    "teachers": (
        "Trains the ensemble's members, calibrates and weighs them by held-out predictions, and stops there. "
        "Writes seed-*/teachers/ in the run's folder. Of the settings it reads data, teachers, seeds, "
        "workers and threads; the others may be there."
    ),
    "cache build": (
        "Builds the transfer set, runs the ensemble over it once, and stores the targets; trains the "
        "teachers first where they are missing or changed. Writes seed-*/cache/ in the run's folder. Of the "
        "settings it reads cache and those of `teachers`."
    ),
    "distill": (
        "Trains the students from the cache, and their baselines on the labels; makes missing stages before "
        "that. Writes seed-*/distill/ and seed-*/direct/ in the run's folder. No report: `ensdistill report "
        "CONFIG` makes it."
    ),
    "report": (
        "Judges the students on the test rows: prints the table and writes report.json, report.html and "
        "figures/ in the run's folder; makes missing stages before that, like `run`."
    ),
}
OTHERS = {
    "cache": """\
usage: ensdistill cache COMMAND ...

  build CONFIG [--SETTING VALUE ...]  run the ensemble once over the transfer
                                      set and store its targets
  info FOLDER                         a target cache's contents, and its
                                      exactness
  verify FOLDER                       read all of it and check every byte;
                                      --against-teachers 0.1% runs them again
  add-member FOLDER OUT ...           a copy with one member more, whose logits
                                      are in a file
  drop-member FOLDER OUT --name NAME  a copy with one member less
  reweight FOLDER MEMBER=WEIGHT ...   other weights, in place (a job's next run
                                      undoes it: reweight a copy)
  convert FOLDER OUT --codec CODEC    the same targets in another codec, or
                                      only their mixture (--mixture-at T)
  export FOLDER FILE.parquet          a Parquet file for other tools
  push FOLDER URL, pull URL FOLDER    to and from s3://, gs://, ...: all that
                                      fsspec supports

`ensdistill cache COMMAND --help` explains each.
""",
    "info": """\
usage: ensdistill info

The build (CPU instruction sets, CUDA architectures, torch versions), and the
parts of it that run on this machine.
""",
}
