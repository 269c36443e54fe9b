"""A producer and a consumer, two processes with a channel in between.

    python examples/producer.py [COUNT]

The producer waits while the channel is full, the consumer while it is empty, and neither costs CPU
then. Kill the producer (its pid is printed): the consumer gets all that it put, and ends.
"""

import multiprocessing
import sys
import time

import pyloop


def produce(channel: pyloop.Channel, count: int) -> None:
    """Run in another process; the channel came as an argument."""
    for number in range(count):
        channel.put(b"reading %d: %d degrees" % (number, number % 100))
    channel.shutdown()


def messages(channel: pyloop.Channel, producer: multiprocessing.process.BaseProcess):
    """Yield what is put, until the channel is shut down or its producer has died."""
    alive = True
    while True:
        try:
            yield channel.get(timeout=0.5)
        except TimeoutError:
            if not alive:
                return
            alive = producer.is_alive()  # if not, look once more: its last words may just have come
        except pyloop.ChannelClosed:
            return


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    with pyloop.Channel(capacity=1 << 18, max_message=100) as channel:
        processes = multiprocessing.get_context("spawn")
        producer = processes.Process(target=produce, args=(channel, count))
        producer.start()
        print(f"process {producer.pid} puts {count} messages", flush=True)
        got, size, start = 0, 0, time.perf_counter()
        for message in messages(channel, producer):
            if not got:
                start = time.perf_counter()
            got += 1
            size += len(message)
        rate = got / (time.perf_counter() - start)
        producer.join()
        print(f"got {got} messages, {size} bytes; {rate:,.0f} messages a second")


if __name__ == "__main__":
    main()
