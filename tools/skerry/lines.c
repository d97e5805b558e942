#include "tools/skerry/files.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

enum { LINE_BYTES_MAX = 64 << 20, READ_BYTES = 256 << 10 };

struct lines {
    const char *path; /* borrowed */
    gzFile file;      /* reads plain files too */
    char *buffer;     /* owned */
    size_t start, end, capacity;
    bool is_at_end;
    uint64_t number;
    uint64_t file_bytes;
};

struct lines *lines_open(const char *path, int *status)
{
    struct stat file_status;
    struct lines *self = calloc(1, sizeof *self);
    *status = CLI_FAILED;
    if (self == NULL)
        return NULL;
    self->path = path;
    self->file = strcmp(path, "-") == 0 ? gzdopen(0, "rb") : gzopen(path, "rb");
    if (self->file == NULL) {
        (void)cli_failed("'%s': %s", path, errno == 0 ? "no memory" : strerror(errno));
        free(self);
        return NULL;
    }
    gzbuffer(self->file, READ_BYTES);
    if (stat(path, &file_status) == 0)
        self->file_bytes = (uint64_t)file_status.st_size;
    *status = CLI_DONE;
    return self;
}

void lines_close(struct lines **self_pointer)
{
    struct lines *self = *self_pointer;
    if (self == NULL)
        return;
    *self_pointer = NULL;
    gzclose(self->file);
    free(self->buffer);
    free(self);
}

static int read_more(struct lines *self)
{
    if (self->start > 0) {
        memmove(self->buffer, self->buffer + self->start, self->end - self->start);
        self->end -= self->start;
        self->start = 0;
    }
    if (self->capacity - self->end < READ_BYTES + 1) {
        size_t capacity = self->capacity == 0 ? 4 * READ_BYTES : 2 * self->capacity;
        if (self->end > LINE_BYTES_MAX)
            return cli_failed("'%s': line %llu is longer than %d bytes", self->path,
                              (unsigned long long)self->number + 1, LINE_BYTES_MAX),
                   -1;
        char *buffer = realloc(self->buffer, capacity);
        if (buffer == NULL)
            return cli_failed("no memory for a line of '%s'", self->path), -1;
        self->buffer = buffer;
        self->capacity = capacity;
    }
    int size = gzread(self->file, self->buffer + self->end, READ_BYTES);
    int code = Z_OK;
    const char *words = gzerror(self->file, &code);
    if (size < 0 || (size == 0 && code != Z_OK && code != Z_STREAM_END))
        return cli_failed("'%s' after line %llu: %s", self->path, (unsigned long long)self->number,
                          code == Z_ERRNO ? strerror(errno) : words),
               -1;
    self->end += (size_t)size;
    self->is_at_end = size == 0;
    return 0;
}

int lines_next(struct lines *self, char **line, size_t *size)
{
    char *newline = NULL;
    size_t searched = 0;
    for (;;) {
        size_t left = self->end - self->start;
        newline = left > searched
                      ? memchr(self->buffer + self->start + searched, '\n', left - searched)
                      : NULL;
        if (newline != NULL || self->is_at_end)
            break;
        searched = left;
        if (read_more(self) != 0)
            return -1;
    }
    if (newline == NULL && self->start == self->end)
        return 0;
    *line = self->buffer + self->start;
    *size = newline == NULL ? self->end - self->start : (size_t)(newline - *line);
    self->start += *size + (newline != NULL);
    if (*size > 0 && (*line)[*size - 1] == '\r')
        --*size;
    (*line)[*size] = '\0'; /* there is room: what was read is followed by a spare byte */
    self->number++;
    return 1;
}

uint64_t lines_number(const struct lines *self)
{
    return self->number;
}

double lines_share(const struct lines *self)
{
    z_off_t at = gzoffset(self->file);
    return self->file_bytes == 0 || at < 0 ? 0 : (double)at / (double)self->file_bytes;
}
