#include "bench/node/block.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

uint64_t sk_bench_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void sk_queries_load(struct sk_queries *out, const char *path, size_t dim)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        fprintf(stderr, "bench: %s cannot be read\n", path);
        exit(1);
    }
    long size = ftell(file);
    rewind(file);
    if (size <= 0 || dim == 0 || (size_t)size % (dim * sizeof(float)) != 0) {
        fprintf(stderr, "bench: %s: %ld bytes are not rows of %zu float32\n", path, size, dim);
        exit(1);
    }
    out->dim = dim;
    out->count = (size_t)size / (dim * sizeof(float));
    out->values = malloc((size_t)size);
    if (out->values == NULL || fread(out->values, 1, (size_t)size, file) != (size_t)size) {
        fprintf(stderr, "bench: %s cannot be read\n", path);
        exit(1);
    }
    fclose(file);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static bool run_block(const struct sk_queries *queries, sk_bench_request *request, void *context,
                      size_t count, size_t first)
{
    uint64_t *taken_ns = malloc(count * sizeof(*taken_ns));
    if (taken_ns == NULL)
        return false;
    size_t errors = 0;
    uint64_t sum_ns = 0, began = sk_bench_now_ns();
    for (size_t i = 0; i < count; i++) {
        size_t at = (first + i) % queries->count;
        uint64_t start = sk_bench_now_ns();
        if (!request(context, queries->values + at * queries->dim, at))
            errors++;
        taken_ns[i] = sk_bench_now_ns() - start;
        sum_ns += taken_ns[i];
    }
    double seconds = (double)(sk_bench_now_ns() - began) / 1e9;
    qsort(taken_ns, count, sizeof(*taken_ns), by_value);
    printf("{\"count\":%zu,\"seconds\":%.6f,\"p50_us\":%.2f,\"p90_us\":%.2f,\"p99_us\":%.2f,\"mean_"
           "us\":%.2f,"
           "\"errors\":%zu}\n",
           count, seconds, (double)taken_ns[count / 2] / 1e3,
           (double)taken_ns[count * 9 / 10] / 1e3, (double)taken_ns[count * 99 / 100] / 1e3,
           (double)sum_ns / 1e3 / (double)count, errors);
    fflush(stdout);
    free(taken_ns);
    return true;
}

int sk_bench_serve(const struct sk_queries *queries, sk_bench_request *request,
                   sk_bench_command *command, void *context)
{
    char line[256];
    while (fgets(line, sizeof(line), stdin) != NULL) {
        size_t count = 0, first = 0;
        if (sscanf(line, "run %zu %zu", &count, &first) == 2 && count > 0 && count <= 10000000) {
            if (!run_block(queries, request, context, count, first))
                return 1;
        } else if (command == NULL || !command(context, line)) {
            fprintf(stderr, "bench: cannot do '%.80s'\n", line);
            return 2;
        }
        fflush(stdout);
    }
    return 0;
}
