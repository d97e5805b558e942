#include "tools/skerry/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

enum { DIM_MAX = 1 << 20, NPY_HEAD_BYTES = 10, UNPACK_BYTES = 1 << 20 };

enum element { F16, F32, F64, I8, U8, I32, I64, U32, U64 };

static const struct {
    const char *name;
    enum element element;
    uint32_t size;
} elements[] = {{"<f2", F16, 2}, {"<f4", F32, 4}, {"<f8", F64, 8}, {"|i1", I8, 1}, {"|u1", U8, 1},
                {"<i4", I32, 4}, {"<i8", I64, 8}, {"<u4", U32, 4}, {"<u8", U64, 8}};

struct matrix {
    const char *path; /* borrowed */
    uint8_t *bytes;   /* mapped */
    size_t size;
    const uint8_t *data; /* the first row's first element */
    enum element element;
    uint32_t element_size;
    uint32_t dim;
    uint64_t rows;
    uint64_t stride;        /* from a row to the next */
    uint64_t column_stride; /* from a number of a row to the next */
    bool is_fortran;        /* .npy: column after column */
    bool has_row_heads; /* fvecs, bvecs: each row says its dimension */
    float *row;         /* owned */
};

/* ---- Mapping ---- */

/* A compressed matrix is unpacked into a file without a name: rows are wanted in any order, and one
 * that does not fit the disk is told so. Returns a descriptor, or -1 after words. */
static int unpack(const char *path)
{
    char *buffer = malloc(UNPACK_BYTES);
    FILE *out = tmpfile();
    gzFile in = gzopen(path, "rb");
    int fd = -1, code = Z_OK, size = -1;
    if (in == NULL || out == NULL || buffer == NULL) {
        (void)cli_failed("'%s': %s", path, errno == 0 ? "no memory" : strerror(errno));
    } else {
        while ((size = gzread(in, buffer, UNPACK_BYTES)) > 0 &&
               fwrite(buffer, (size_t)size, 1, out) == 1) {
        }
        const char *words = gzerror(in, &code);
        if (size > 0 || (size == 0 && fflush(out) != 0))
            (void)cli_failed("'%s' cannot be unpacked: %s", path, strerror(errno));
        else if (size < 0 || (code != Z_OK && code != Z_STREAM_END))
            (void)cli_failed("'%s': %s", path, code == Z_ERRNO ? strerror(errno) : words);
        else
            fd = dup(fileno(out));
    }
    if (in != NULL)
        gzclose(in);
    if (out != NULL)
        fclose(out);
    free(buffer);
    return fd;
}

static bool ends_with(const char *text, const char *end)
{
    size_t size = strlen(text), end_size = strlen(end);
    return size >= end_size && strcmp(text + size - end_size, end) == 0;
}

static bool map_file(struct matrix *self, const char *path)
{
    struct stat status;
    bool is_packed = ends_with(path, ".gz");
    int fd = is_packed ? unpack(path) : open(path, O_RDONLY | O_CLOEXEC);
    self->path = path;
    if (is_packed && fd < 0)
        return false;
    if (fd < 0 || fstat(fd, &status) != 0) {
        (void)cli_failed("'%s': %s", path, strerror(errno));
    } else if (!S_ISREG(status.st_mode) || status.st_size <= 0) {
        (void)cli_failed("'%s' is %s", path, S_ISREG(status.st_mode) ? "empty" : "not a file");
    } else {
        self->size = (size_t)status.st_size;
        void *bytes = mmap(NULL, self->size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (bytes == MAP_FAILED)
            (void)cli_failed("'%s' cannot be mapped: %s", path, strerror(errno));
        else
            self->bytes = bytes;
    }
    if (fd >= 0)
        close(fd);
    if (self->bytes != NULL)
        (void)madvise(self->bytes, self->size, MADV_SEQUENTIAL);
    return self->bytes != NULL;
}

/* ---- npy ---- */

/* The text behind 'key': in the header's dictionary, at its value. */
static const char *npy_value(const char *header, const char *key)
{
    char quoted[40];
    snprintf(quoted, sizeof quoted, "'%s':", key);
    const char *at = strstr(header, quoted);
    if (at == NULL)
        return NULL;
    at += strlen(quoted);
    return at + strspn(at, " ");
}

static bool npy_type(struct matrix *self, const char *header)
{
    const char *text = npy_value(header, "descr"), *order = npy_value(header, "fortran_order");
    for (size_t i = 0; text != NULL && i < SK_COUNT_OF(elements); i++)
        if (text[0] == '\'' && strncmp(text + 1, elements[i].name, 3) == 0 && text[4] == '\'') {
            self->element = elements[i].element;
            self->element_size = elements[i].size;
        }
    if (self->element_size == 0) {
        (void)cli_failed("'%s': numpy type %.8s; want float16, float32, float64, int8 or uint8, "
                         "little-endian",
                         self->path, text == NULL ? "?" : text);
        return false;
    }
    self->is_fortran = order != NULL && strncmp(order, "True", 4) == 0;
    if (!self->is_fortran && (order == NULL || strncmp(order, "False", 5) != 0)) {
        (void)cli_failed("'%s': its header does not tell the order of its numbers", self->path);
        return false;
    }
    return true;
}

static bool npy_shape(struct matrix *self, const char *header)
{
    const char *text = npy_value(header, "shape");
    unsigned long long rows = 0, dim = 0;
    int parsed = text == NULL ? 0 : sscanf(text, "(%llu, %llu)", &rows, &dim);
    if (parsed == 1)
        dim = 1; /* one dimension: a column of numbers */
    if (parsed < 1 || dim == 0 || dim > DIM_MAX || strchr(text, ')') == NULL ||
        (parsed == 2 && strchr(strchr(text, ',') + 1, ',') != NULL &&
         strchr(strchr(text, ',') + 1, ',') < strchr(text, ')') - 1)) {
        (void)cli_failed("'%s': shape %.40s; want (rows, dim)", self->path,
                         text == NULL ? "missing" : text);
        return false;
    }
    self->rows = rows;
    self->dim = (uint32_t)dim;
    self->stride = dim * self->element_size;
    return true;
}

static bool open_npy(struct matrix *self)
{
    char header[4096];
    if (self->size < NPY_HEAD_BYTES + 2 || memcmp(self->bytes, "\x93NUMPY", 6) != 0 ||
        self->bytes[6] < 1 || self->bytes[6] > 3) {
        (void)cli_failed("'%s' is not a .npy file", self->path);
        return false;
    }
    bool is_first = self->bytes[6] == 1;
    size_t header_at = is_first ? 10 : 12,
           header_size = self->bytes[8] | (size_t)self->bytes[9] << 8;
    if (!is_first)
        header_size |= (size_t)self->bytes[10] << 16 | (size_t)self->bytes[11] << 24;
    if (header_size >= sizeof header || header_at + header_size > self->size) {
        (void)cli_failed("'%s': its header of %zu bytes is cut or too long", self->path,
                         header_size);
        return false;
    }
    memcpy(header, self->bytes + header_at, header_size);
    header[header_size] = '\0';
    if (!npy_type(self, header) || !npy_shape(self, header))
        return false;
    uint64_t room = self->size - header_at - header_size;
    self->column_stride = self->element_size;
    if (self->is_fortran && self->rows <= room / self->stride) {
        self->stride = self->element_size;
        self->column_stride = self->rows * self->element_size;
    } else if (self->rows > room / self->stride) {
        (void)cli_failed(
            "'%s' is cut: its header tells %llu rows of %u numbers, the file ends after "
            "%llu",
            self->path, (unsigned long long)self->rows, self->dim,
            (unsigned long long)(room / self->stride));
        return false;
    }
    self->data = self->bytes + header_at + header_size;
    return true;
}

/* ---- fvecs, bvecs ---- */

static bool open_vecs(struct matrix *self, bool is_float)
{
    uint32_t dim = 0;
    if (self->size >= sizeof dim)
        memcpy(&dim, self->bytes, sizeof dim);
    self->element = is_float ? F32 : U8;
    self->element_size = is_float ? 4 : 1;
    self->has_row_heads = true;
    self->dim = dim;
    self->stride = sizeof dim + (uint64_t)dim * self->element_size;
    self->column_stride = self->element_size;
    if (dim == 0 || dim > DIM_MAX || self->size % self->stride != 0) {
        (void)cli_failed("'%s' is not rows of a dimension (%u) and as many numbers, or is cut",
                         self->path, dim);
        return false;
    }
    self->rows = self->size / self->stride;
    self->data = self->bytes + sizeof dim;
    return true;
}

bool matrix_is_named(const char *path)
{
    static const char *const ends[] = {".npy",    ".fvecs",    ".bvecs",
                                       ".npy.gz", ".fvecs.gz", ".bvecs.gz"};
    for (size_t i = 0; i < SK_COUNT_OF(ends); i++)
        if (ends_with(path, ends[i]))
            return true;
    return false;
}

struct matrix *matrix_open(const char *path, int *status)
{
    struct matrix *self = calloc(1, sizeof *self);
    bool is_open = self != NULL && map_file(self, path);
    if (is_open && (ends_with(path, ".fvecs") || ends_with(path, ".fvecs.gz")))
        is_open = open_vecs(self, true);
    else if (is_open && (ends_with(path, ".bvecs") || ends_with(path, ".bvecs.gz")))
        is_open = open_vecs(self, false);
    else if (is_open)
        is_open = open_npy(self);
    if (is_open && self->element > U8 && self->dim > 1) {
        is_open = false;
        (void)cli_failed("'%s' holds integers of more than 8 bits; vectors are float16, float32, "
                         "float64, int8 or uint8",
                         path);
    }
    if (is_open && (self->row = malloc(self->dim * sizeof *self->row)) == NULL)
        is_open = false;
    if (!is_open)
        matrix_close(&self);
    *status = is_open ? CLI_DONE : CLI_FAILED;
    return self;
}

void matrix_close(struct matrix **self_pointer)
{
    struct matrix *self = *self_pointer;
    if (self == NULL)
        return;
    *self_pointer = NULL;
    if (self->bytes != NULL)
        munmap(self->bytes, self->size);
    free(self->row);
    free(self);
}

uint64_t matrix_rows(const struct matrix *self)
{
    return self->rows;
}

uint32_t matrix_dim(const struct matrix *self)
{
    return self->dim;
}

static float half_to_float(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000U) << 16, exponent = half >> 10 & 31U,
             fraction = half & 1023U;
    uint32_t bits = sign;
    if (exponent == 31) {
        bits |= 0x7f800000U | fraction << 13; /* infinity and NaN: the node refuses them by name */
    } else if (exponent > 0) {
        bits |= (exponent + 112) << 23 | fraction << 13;
    } else if (fraction > 0) {
        exponent = 113;
        for (; (fraction & 1024U) == 0; exponent--)
            fraction <<= 1;
        bits |= exponent << 23 | (fraction & 1023U) << 13;
    }
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float element_at(const struct matrix *self, const uint8_t *at)
{
    uint16_t half;
    float single;
    double twice;
    switch (self->element) {
    case F16:
        memcpy(&half, at, sizeof half);
        return half_to_float(half);
    case F32:
        memcpy(&single, at, sizeof single);
        return single;
    case F64:
        memcpy(&twice, at, sizeof twice);
        return (float)twice;
    case I8:
        return (float)(int8_t)*at;
    default:
        return (float)*at;
    }
}

const float *matrix_row(struct matrix *self, uint64_t row)
{
    const uint8_t *at = self->data + row * self->stride;
    uint32_t dim = self->dim;
    if (self->has_row_heads)
        memcpy(&dim, at - sizeof dim, sizeof dim);
    if (dim != self->dim) {
        (void)cli_failed("'%s': row %llu has dimension %u, the first one %u", self->path,
                         (unsigned long long)row, dim, self->dim);
        return NULL;
    }
    if (self->element == F32 && !self->is_fortran)
        memcpy(self->row, at, dim * sizeof *self->row);
    else
        for (uint32_t i = 0; i < dim; i++)
            self->row[i] = element_at(self, at + i * self->column_stride);
    return self->row;
}

/* ---- Whole numbers ---- */

bool matrix_is_integers(const char *path)
{
    return ends_with(path, ".npy") || ends_with(path, ".npy.gz");
}

static uint64_t integer_at(const struct matrix *self, uint64_t row, bool *is_negative)
{
    const uint8_t *at = self->data + row * self->stride;
    int32_t i32;
    int64_t i64;
    uint32_t u32;
    uint64_t u64;
    switch (self->element) {
    case I32:
        memcpy(&i32, at, sizeof i32);
        *is_negative = *is_negative || i32 < 0;
        return (uint64_t)i32;
    case I64:
        memcpy(&i64, at, sizeof i64);
        *is_negative = *is_negative || i64 < 0;
        return (uint64_t)i64;
    case U32:
        memcpy(&u32, at, sizeof u32);
        return u32;
    default:
        memcpy(&u64, at, sizeof u64);
        return u64;
    }
}

uint64_t *integers_load(const char *path, uint64_t *count, int *status)
{
    struct matrix *self = calloc(1, sizeof *self);
    uint64_t *numbers = NULL;
    bool is_negative = false, is_open = self != NULL && map_file(self, path) && open_npy(self);
    *status = CLI_FAILED;
    *count = 0;
    if (is_open && (self->dim != 1 || self->element < I32)) {
        (void)cli_failed("'%s': want one column of int32, int64, uint32 or uint64", path);
    } else if (is_open && (numbers = malloc((self->rows + 1) * sizeof *numbers)) != NULL) {
        for (uint64_t i = 0; i < self->rows; i++)
            numbers[i] = integer_at(self, i, &is_negative);
        *count = self->rows;
        *status = CLI_DONE;
    }
    if (is_negative) {
        (void)cli_failed("'%s' holds negative numbers; ids are unsigned", path);
        free(numbers);
        numbers = NULL;
        *status = CLI_FAILED;
    }
    matrix_close(&self);
    return numbers;
}
