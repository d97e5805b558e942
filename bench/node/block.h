/* What both benchmark clients (the node's and the relay's) share: how they are driven and what they
 * print, so that their blocks can be interleaved by one program and compared.
 *
 * On stdin, one command a line:  run COUNT FIRST   (COUNT requests, beginning with query FIRST),
 * or what the client adds to that.
 * On stdout, one JSON line each:
 * {"count":..,"seconds":..,"p50_us":..,"p99_us":..,"mean_us":..,"errors":..} Thread: one. */
#ifndef SK_BENCH_BLOCK_H
#define SK_BENCH_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sk_queries {
    float *values; /* count x dim */
    size_t count;
    size_t dim;
};

uint64_t sk_bench_now_ns(void);
/* Raw little-endian float32; exits with words when the file is not count x dim of them. */
void sk_queries_load(struct sk_queries *out, const char *path, size_t dim);
/* One request with query number `at`; false counts as an error. */
typedef bool sk_bench_request(void *context, const float *query, size_t at);
/* Any other command; prints its own line. false: it is not one, or it failed (and said why). */
typedef bool sk_bench_command(void *context, const char *line);
/* Reads commands until end of file; returns the exit status. command may be NULL. */
int sk_bench_serve(const struct sk_queries *queries, sk_bench_request *request,
                   sk_bench_command *command, void *context);

#endif
