"""The texts of ``ensdistill --help`` and of the commands' own ``--help``."""

COMMANDS = (
    "init",
    "run",
    "teachers",
    "cache",
    "preflight",
    "tune",
    "distill",
    "report",
    "predict",
    "export",
    "compare",
    "share",
    "info",
    "bench",
    "completion",
)
CACHE_COMMANDS = (
    "build",
    "info",
    "verify",
    "contributions",
    "add-member",
    "drop-member",
    "reweight",
    "convert",
    "export",
    "push",
    "pull",
)
USAGE = """\
ensdistill: any ensemble in, one small fast model out, with proof of how much of
the ensemble it kept.

    teachers ──► cache ──► student ──► report

From data to predictions:
  ensdistill run DATA --target Y  find all settings, and do the whole job
  ensdistill init DATA            only write these settings: a short YAML file
  ensdistill RUN                  a run's folder: what is in it, what to do next
  ensdistill predict RUN NEW.csv  the student's label and probabilities, by row
  ensdistill export RUN --to onnx the student as one file
  ensdistill compare RUN RUN      several runs in one table and one page
  ensdistill share FILE           one student for the data sets of several jobs

With settings of your own, a whole job or up to a stage:
  ensdistill run CONFIG           the whole job, up to the report
  ensdistill teachers CONFIG      train, calibrate and weigh the ensemble
  ensdistill cache build CONFIG   and run it once over the transfer set
  ensdistill preflight CONFIG     is there a gain to keep? before a student is
                                  trained
  ensdistill tune CONFIG          and search for the students that have a goal
                                  (keep, max_latency, ...) in place of a model
  ensdistill distill CONFIG       and train the students and their baselines
  ensdistill report CONFIG        and judge them: report.json, report.html

  ensdistill cache info FOLDER    a target cache's contents, and its exactness
  ensdistill cache verify FOLDER  read all of it and check every byte
  ensdistill info                 the build, and the parts that run here
  ensdistill bench                time the losses on this machine
  ensdistill completion SHELL     completion of these words in bash, zsh or fish

DATA is a table (CSV, TSV, Parquet, JSON lines, Arrow), arrays (.npy, .npz), or
a folder of images or texts in class folders. CONFIG is a YAML file, RUN the
folder of a run (runs/NAME). Each of a job's commands makes missing stages
before it, skips finished and unchanged ones, and goes on where a killed one
stopped. Every setting can be overridden:

  ensdistill run examples/digits.yaml --seeds 5 --distill.loss.temperature 2

Every command takes
  --quiet    no progress and no notes; results, warnings and errors only
  --debug    an error with its traceback
  --json     standard output holds one JSON document: run and its stages, init,
             predict, export, compare, share, info, cache,
             RUN
Exit status: 0 done; 2 a word or a setting has to change, because it is unknown,
has a value that it can't have, or names a file, folder, column or student that
is not there; 1 any other error: in data, in a file's content, in the work, or a
run that has not finished; 130 stopped by Ctrl-C.

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
    "preflight": (
        "Shows what there is to keep before a student is trained: the ensemble's lead over its best member "
        "and over the students' models trained directly, on held-out labelled rows with intervals; how much "
        "the members differ on the rows that the students will be asked; and what to change. Makes the "
        "stages teachers, cache and direct where they are missing. `ensdistill run` prints it on its way."
    ),
    "tune": (
        "Searches for the students that have keep, max_latency, max_bytes or max_parameters in place of a "
        "model: half of --minutes for the student, half for its direct baseline, by --workers processes. "
        "With data in place of CONFIG, --keep 0.95 is such a goal. Prints the frontier of size "
        "against what is kept, and writes it, its picture and the found settings into seed-*/search/ in the "
        "run's folder; makes missing stages before that. `run` does this, too, and trains what was found."
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
  contributions FOLDER                how much each member adds, from the stored
                                      targets alone; --labels FILE.npy
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
usage: ensdistill info [--json]

The build (CPU instruction sets, CUDA architectures, torch versions), and the
parts of it that run on this machine.
""",
}
