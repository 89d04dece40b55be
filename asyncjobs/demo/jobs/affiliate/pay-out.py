"""The other half, in a kebab-case file and with plain dicts for options."""

worker_options = {"limiter": None}


async def handle(data, services):
    services.did("affiliate paid")
