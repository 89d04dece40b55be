"""Second link: every third invoice is rejected and has to be cancelled."""

from asyncjobs import JobOptions, WorkerOptions

job_options = JobOptions(attempts=3, backoff=1)
worker_options = WorkerOptions(limiter=None)


async def handle(data, queue, services, io):
    services.did("invoice answered")
    rejected = data["number"] % 3 == 0
    state = "rejected" if rejected else "authorised"
    io.to(f"company:{data['company']}").emit("invoice.state", {"number": data["number"], "state": state})
    if rejected:
        await queue.add("product-invoice-cancel", data, job_id=f"cancel-{data['number']}")
