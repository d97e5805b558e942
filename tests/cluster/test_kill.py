"""kill -9 of a random process, under load, fifty times: nothing acknowledged is lost, nothing invented."""

import os
import random
import signal
import threading
import time
import unittest

from harness import IS_LONG, SEED, Ledger, NoAnswer, Node, RequestError, is_alive, kill, wait_until

DIM = 24
WRITERS = 3
IDS_EACH = 400
ROUNDS = 400 if IS_LONG else 50


class Writer(threading.Thread):
    """Writes its own ids, one request at a time, until told to stop; rests while told to."""

    def __init__(self, node, number):
        super().__init__(daemon=True)
        self.node, self.number = node, number
        self.ledger = Ledger()
        self.rng = random.Random(SEED * 1000 + number)
        self.is_ended = False
        self.may_run = threading.Event()
        self.is_resting = threading.Event()
        self.serial = 0
        self.outcomes = {}

    def run(self):
        client = self.node.client()
        ids = [self.number * 100000 + i for i in range(IDS_EACH)]
        while not self.is_ended:
            if not self.may_run.is_set():
                self.is_resting.set()
                self.may_run.wait(0.05)
                continue
            self.is_resting.clear()
            self.serial += 1
            some = self.rng.sample(ids, self.rng.randint(1, 40))
            if self.rng.random() < 0.15:
                outcome = self.ledger.delete(client, "docs", some, timeout_ms=2500, deadline_ms=1500)
            else:
                outcome = self.ledger.upsert(client, "docs", some, self.serial, DIM, timeout_ms=2500,
                                             deadline_ms=1500)
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
            if outcome not in ("ok", "deadline", "unavailable", "busy", "no answer"):
                raise AssertionError(f"an error that a killed process does not explain: {outcome}")
            if outcome != "ok":
                time.sleep(0.02)
        client.close()

    def rest(self):
        self.may_run.clear()
        assert self.is_resting.wait(30), "a writer does not come back: a request without an end"


class KillTest(unittest.TestCase):
    def test_a_killed_process_loses_nothing_that_was_acknowledged(self):
        rng = random.Random(SEED)
        with Node() as node:
            client = node.client()
            client.call("create_collection", collection="docs", vectors={"dim": DIM, "metric": "l2"},
                        payload={"n": "integer"})
            writers = [Writer(node, n) for n in range(WRITERS)]
            for writer in writers:
                writer.may_run.set()
                writer.start()
            killed = {}
            for round_ in range(ROUNDS):
                time.sleep(rng.uniform(0.05, 0.4))
                pids = node.pids()
                name = rng.choice(sorted(pids))
                pid = rng.choice(pids[name])
                killed[name] = killed.get(name, 0) + 1
                kill(pid, signal.SIGKILL)
                if name == "supervisor":
                    wait_until(lambda: not is_alive(pid), 5, "the killed supervisor is gone")
                    others = [p for n, list_ in pids.items() if n != "supervisor" for p in list_]
                    wait_until(lambda: not any(is_alive(p) for p in others), 15,
                               "the processes end when their supervisor was killed")
                    node.start()
                self.wait_served(node)
                for writer in writers:
                    writer.rest()
                for writer in writers:
                    wrong = writer.ledger.check(client, "docs", list(writer.ledger.open), settle=True)
                    self.assertEqual(wrong[:5], [], f"round {round_}, after {name} was killed")
                if round_ % 10 == 9:
                    self.check_counts(client, writers, round_)
                for writer in writers:
                    self.assertTrue(writer.is_alive(), "a writer has failed")
                    writer.may_run.set()
            for writer in writers:
                writer.rest()
                writer.is_ended = True
            for writer in writers:
                writer.join(20)
            print(f"killed {killed}; outcomes {[w.outcomes for w in writers]}")
            self.assertGreater(sum(w.outcomes.get("ok", 0) for w in writers), ROUNDS)

    def wait_served(self, node):
        """Until a fresh client gets answers from the collection."""
        def served():
            if not os.path.exists(node.endpoint[len("ipc://"):]):
                return False
            with node.client() as fresh:
                try:
                    fresh.call("count", 2000, collection="docs", deadline_ms=1500)
                    return True
                except (NoAnswer, RequestError):
                    return False
        wait_until(served, 20, "the node serves again after a kill")

    def check_counts(self, client, writers, round_):
        """The whole collection holds what the ledgers hold, by count, scroll and exact search."""
        wanted = {i for w in writers for i, serial in w.ledger.sure.items() if serial}
        count = client.call("count", collection="docs")["count"]
        self.assertEqual(count, len(wanted), f"round {round_}: count")
        seen, cursor = [], None
        while True:
            page = client.call("scroll", collection="docs", limit=500,
                               **({"cursor": cursor} if cursor is not None else {}))
            seen += [record["id"] for record in page["records"]]
            cursor = page["cursor"]
            if cursor is None:
                break
        self.assertEqual(len(seen), len(set(seen)), f"round {round_}: scroll shows a record twice")
        self.assertEqual(set(seen), wanted, f"round {round_}: scroll")
        hits = client.call("search", collection="docs", vector=[0.1] * DIM, limit=10000, exact=True)["hits"]
        self.assertEqual({hit["id"] for hit in hits}, wanted, f"round {round_}: exact search")
        report = client.call("verify", 30000, collection="docs")
        self.assertTrue(report["ok"])


if __name__ == "__main__":
    unittest.main()
