"""How an operation waits: the effects that operations yield, and the two runtimes, threads and asyncio."""
