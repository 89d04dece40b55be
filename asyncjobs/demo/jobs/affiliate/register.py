"""One half of a pair: a sync handler, which runs in a thread, and adds its other half from there."""

from asyncjobs import WorkerOptions

worker_options = WorkerOptions(limiter=None)


def handle(data, queue, services):
    services.did("affiliate registered")
    queue.add("affiliate-pay-out", {"affiliate": data["affiliate"], "amount": 25})
