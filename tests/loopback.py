"""Several workers on this host, which find each other over loopback."""

import json
import socket

import commands


def addresses(count):
  """This many free addresses, "127.0.0.1:PORT"."""
  holders = [socket.socket() for _ in range(count)]
  for holder in holders:
    holder.bind(("127.0.0.1", 0))
  found = [f"127.0.0.1:{holder.getsockname()[1]}" for holder in holders]
  for holder in holders:
    holder.close()
  return found


def start(logs, command, count=2):
  """Starts workers.

  Args:
    logs: a folder, where worker 0 writes what it says into "0.log".
    command: what each runs, a list.
    count: how many.

  Returns:
    A list of `subprocess.Popen`.
  """
  cluster = {"worker": addresses(count)}
  logs.mkdir(parents=True, exist_ok=True)
  tasks = [{"cluster": cluster, "task": {"type": "worker", "index": i}} for i in range(count)]
  return [
    commands.start(command, logs / f"{index}.log", TF_CONFIG=json.dumps(task))
    for index, task in enumerate(tasks)
  ]
