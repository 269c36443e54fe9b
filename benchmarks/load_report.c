/* load_report.c -- latencies of the load generator, and its report. */
#include "load.h"

#include <stdio.h>

static unsigned bucket(uint64_t v)
{
    if (v < 64) {
        return (unsigned)v;
    }
    unsigned shift = 57u - (unsigned)__builtin_clzll(v);
    return (shift + 1) * 64 + (unsigned)((v >> shift) & 63);
}

void histogram_add(struct histogram *h, uint64_t ns)
{
    h->buckets[bucket(ns)]++;
    h->count++;
    if (ns > h->max) {
        h->max = ns;
    }
}

static double histogram_us(const struct histogram *h, double percentile)
{
    double left = percentile / 100 * (double)h->count;
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        left -= (double)h->buckets[i];
        if (h->buckets[i] && left <= 0) {
            return i < 64 ? i / 1e3 : (double)((uint64_t)(64 + i % 64) << (i / 64 - 1)) / 1e3;
        }
    }
    return (double)h->max / 1e3;
}

/* Both take the same arguments in the same order. */
static const char as_json[] =
    "{\"mode\": \"%s\", \"target\": \"%s\", \"connections\": %u, \"inflight\": %u, "
    "\"size\": %zu, \"seconds\": %.6f, \"messages\": %.0f, \"messages_per_s\": %.1f, "
    "\"bytes\": %.0f, \"server_cpu_us\": %.3f, \"server_cpu_us_per_message\": %.5f, "
    "\"client_cpu_us\": %.3f, \"server_delay_us\": %.1f, \"client_delay_us\": %.1f, \"others\": %.4f, "
    "\"p50_us\": %.2f, \"p99_us\": %.2f, \"max_us\": %.2f, "
    "\"errors\": %llu, \"lost\": %llu, \"datagrams_lost\": %llu, \"verified_bytes\": %llu}\n";

static const char as_text[] =
    "%s %s: %u connections, %u in flight, messages of %zu bytes\n"
    "window %.3f s, %.0f messages, %.1f messages/s, %.0f bytes\n"
    "server CPU %.0f us, %.4f us per message; generator CPU %.0f us\n"
    "waited for a CPU: server %.0f us, generator %.0f us; others had %.4f of the CPUs\n"
    "latency p50 %.1f us, p99 %.1f us, max %.1f us\n"
    "errors %llu, connections lost %llu, datagrams lost %llu, bytes verified %llu\n";

/* The share that everybody else had of the CPUs where server and generator may run. The
 * kernel tells idle time in ticks, so it may come out a little below 0. */
static double others(const struct reading *a, const struct reading *b)
{
    double there = (double)(b->ns - a->ns) * b->cpus;
    double idle = (double)(b->idle - a->idle);
    double ours = (double)(b->cpu - a->cpu) + (double)(b->own_cpu - a->own_cpu);
    return there > 0 ? (there - idle - ours) / there : 0;
}

void report(const struct load *l)
{
    static const char *const modes[] = {"load", "hold", "churn"};
    const struct reading *a = &l->from, *b = &l->to;
    double seconds = (double)(b->ns - a->ns) / 1e9;
    double cpu = (double)(b->cpu - a->cpu) / 1e3;
    double messages = (double)(b->messages - a->messages);
    const char *text = l->o.json ? as_json : as_text;
    printf(text, modes[l->o.mode], l->o.target, l->o.connections, l->o.inflight, l->o.size, seconds,
           messages, seconds > 0 ? messages / seconds : 0, (double)(b->bytes - a->bytes), cpu,
           messages > 0 ? cpu / messages : 0, (double)(b->own_cpu - a->own_cpu) / 1e3,
           (double)(b->delay - a->delay) / 1e3, (double)(b->own_delay - a->own_delay) / 1e3,
           others(a, b),
           histogram_us(&l->h, 50), histogram_us(&l->h, 99), (double)l->h.max / 1e3,
           (unsigned long long)l->errors, (unsigned long long)l->lost,
           (unsigned long long)l->given_up,
           (unsigned long long)l->bytes);
}
