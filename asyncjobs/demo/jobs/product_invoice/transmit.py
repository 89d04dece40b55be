"""First link of the chain: hand the invoice to the authority, then queue the look at its answer."""

from dataclasses import dataclass

from asyncjobs import JobOptions, WorkerOptions


@dataclass
class Invoice:
    number: int
    company: str
    total: float


job_options = JobOptions(attempts=3, backoff=1)
worker_options = WorkerOptions(limiter=None)


async def handle(data: Invoice, queue, services):
    services.did("invoice transmitted")
    await queue.add("product-invoice-process-response", {"number": data.number, "company": data.company})
