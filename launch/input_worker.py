#!/usr/bin/env python3
"""Reads and augments images for a training on another machine, until it is stopped.

  python launch/input_worker.py --port=5050                  # on each input machine, A and B
  python -m urkle_tf.train --data_service=A:5050,B:5050 ...  # on the machine that trains

--host is the name by which the training reaches this machine. The default is its host name. Batches
are served on the port after --port. All machines need the same version of TensorFlow. Data that
does not fit in memory must have the same path on each. Anyone who can reach the ports can run any
code here, so open them to your own machines only.
"""

import os
import pathlib
import signal
import socket
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # works without installation

from experiments import jobs
from urkle_tf import command_line


def main():
  """The command line."""
  parser = jobs.Parser(__doc__)
  parser.add_argument("--port", type=int, default=5050, help="port, as given in --data_service")
  parser.add_argument("--host", default=socket.gethostname(), help="name of this machine")
  options = parser.parse_args()

  # Blocks the signals before TensorFlow is imported, because the import starts threads. A thread
  # that did not block them would receive them and end the program before sigwait below.
  ended = [signal.SIGTERM, signal.SIGINT]
  signal.pthread_sigmask(signal.SIG_BLOCK, ended)

  command_line.import_tensorflow()
  from urkle_tf.data import service

  servers = service.serve(options.port, options.host, options.port + 1 if options.port else 0)
  address = servers[0].target.rpartition(":")[2]
  print(f"an input worker: --data_service={options.host}:{address}", flush=True)
  signal.sigwait(ended)
  # Exits at once, because there is nothing to save, and the end of a pipeline could take a while.
  os._exit(0)


if __name__ == "__main__":
  jobs.main(main)
