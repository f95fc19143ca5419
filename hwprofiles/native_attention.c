/* Decode attention on the CPU: one query token a row over cached tokens laid out [token, K or V, row, vector].

   A task is one row and some of its K and V heads, so that each token is a few contiguous KB. It reads blocks of a few
   tokens of one head, and asks for the next ones meanwhile. Where one query needs a block, values are turned to float32
   in registers, by code compiled for what they are stored as; where several do, and where values are packed, once, into
   a tile in the first-level cache. The softmax is online, over spans of tokens. Sums are float32. NaN in, NaN out. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__AVX2__) || defined(__F16C__)
#include <immintrin.h>
#endif

#ifdef __AVX512F__
#define WIDTH 16
#elif defined(__AVX__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
#define TOKENS 8 /* of a block; often a multiple of 4 KB apart, so no more than a first-level cache has ways */
#define SPAN 128 /* tokens between updates of the softmax's maximum */
#define GROUP 64 /* values of a quantised group: byte b of 32 holds values b and b + 32 */
#define MAX_HEAD_DIM 512
#define STRIDE (MAX_HEAD_DIM + 16) /* floats between tokens of a tile: in different sets of the cache */
#define LINE 64 /* bytes */
#define AHEAD 2 /* blocks from the one that is read to the one that is asked for */
#define TASK_VALUES 2048 /* of a token that a task reads at most, unless one head has more */
#define UNIT_VALUES 512 /* of a token that the last tasks read */
#define LEFT_TO_OTHERS 2 /* a task is a thread's even share of what is left, over this */

typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef uint16_t hvec __attribute__((vector_size(2 * WIDTH), aligned(2)));
typedef uint8_t bvec __attribute__((vector_size(WIDTH), aligned(1)));
typedef float quarter __attribute__((vector_size(16), aligned(4)));

#define inlined static inline __attribute__((always_inline))
#define at(from, i) (*(vec *)((from) + (i)))

enum kind { FLOAT32, FLOAT16, BFLOAT16, PACKED };

struct job {
    const char *data;
    int64_t token_bytes, value_bytes, row_bytes; /* from token to token, from K to V, from row to row */
    const float *query;                          /* [rows, heads * group, head_dim] */
    float *out;                                  /* the same */
    const int64_t *pads;                         /* [rows]: a row's first token; or null */
    int64_t rows, start, stop, heads, group, head_dim; /* tokens [start, stop); t in place t mod (stop - start) */
    int64_t groups; /* quantised groups of a vector */
    float scale, softcap; /* softcap 0: none */
    int32_t kind, threads;
};

static inline vec splat(float x) { return x - (vec){}; }

static inline vec pick(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }

static inline quarter quarter_sum(vec x) {
    union { vec all; quarter part[WIDTH / 4]; } parts = {x};
    quarter total = parts.part[0];
    for (int i = 1; i < WIDTH / 4; i++) total += parts.part[i];
    return total;
}

/* The sums of four vectors. */
static inline quarter sums(vec a, vec b, vec c, vec d) {
#if defined(__AVX512F__)
    __m512 w = (__m512)a, x = (__m512)b, y = (__m512)c, z = (__m512)d;
    w = _mm512_unpacklo_ps(w, y) + _mm512_unpackhi_ps(w, y); /* a c a c of every four */
    x = _mm512_unpacklo_ps(x, z) + _mm512_unpackhi_ps(x, z);
    return quarter_sum((vec)(_mm512_unpacklo_ps(w, x) + _mm512_unpackhi_ps(w, x)));
#elif defined(__F16C__)
    return quarter_sum((vec)_mm256_hadd_ps(_mm256_hadd_ps((__m256)a, (__m256)b), _mm256_hadd_ps((__m256)c, (__m256)d)));
#else
    quarter w = quarter_sum(a), x = quarter_sum(b), y = quarter_sum(c), z = quarter_sum(d);
    return (quarter){w[0] + w[1] + w[2] + w[3], x[0] + x[1] + x[2] + x[3], y[0] + y[1] + y[2] + y[3],
                     z[0] + z[1] + z[2] + z[3]};
#endif
}

/* 2^x for x <= 0, within 2 ulp and never below 2^-126; NaN stays NaN. Taylor series of 2^f on [-0.5, 0.5]. */
static inline vec exp2_of(vec x) {
    x = pick(x < -126.0f, splat(-126.0f), x);
    vec shifted = x + 12582912.0f; /* 1.5 * 2^23: leaves the nearest integer in the last bits */
    vec f = x - (shifted - 12582912.0f);
    vec p = splat(1.5403530e-4f);
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    return (vec)((ivec)p + (((ivec)shifted - 0x4b400000) << 23));
}

static inline float half_to_float(uint16_t half) {
#ifdef __F16C__
    return _cvtsh_ss(half);
#else
    union { uint32_t bits; float value; } x = {(uint32_t)(half & 0x7fff) << 13};
    x.value *= 0x1p112f;
    if ((half & 0x7c00) == 0x7c00) x.bits |= 0x7f800000;
    x.bits |= (uint32_t)(half & 0x8000) << 16;
    return x.value;
#endif
}

static inline float bfloat_to_float(uint16_t bfloat) {
    union { uint32_t bits; float value; } x = {(uint32_t)bfloat << 16};
    return x.value;
}

static inline vec halves(const uint16_t *from) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)from));
#elif defined(__F16C__)
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const void *)from));
#else
    vec x;
    for (int i = 0; i < WIDTH; i++) x[i] = half_to_float(from[i]);
    return x;
#endif
}

static inline vec bfloats(const uint16_t *from) {
#if defined(__AVX512F__)
    ivec x = (ivec)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)from));
#elif defined(__AVX2__)
    ivec x = (ivec)_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)from));
#else
    ivec x = __builtin_convertvector(*(const hvec *)from, ivec);
#endif
    return (vec)(x << 16);
}

/* Values [i, i + WIDTH) of unpacked ones, and value i. */
inlined vec several(enum kind kind, const void *from, int64_t i) {
    if (kind == FLOAT32) return at((const float *)from, i);
    if (kind == FLOAT16) return halves((const uint16_t *)from + i);
    return bfloats((const uint16_t *)from + i);
}

inlined float one(enum kind kind, const void *from, int64_t i) {
    if (kind == FLOAT32) return ((const float *)from)[i];
    return kind == FLOAT16 ? half_to_float(((const uint16_t *)from)[i]) : bfloat_to_float(((const uint16_t *)from)[i]);
}

/* A group's 64 values; with AVX-512 each is looked up among the 16 that the group can have. */
static inline void unpack_group(const uint8_t *from, float scale, float low, float *to) {
#ifdef __AVX512F__
    const vec steps = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const __m512 levels = (__m512)(steps * scale + low);
    for (int i = 0; i < GROUP / 2; i += WIDTH) {
        __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(from + i)));
        at(to, i) = (vec)_mm512_permutexvar_ps(codes, levels);
        at(to, i + GROUP / 2) = (vec)_mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), levels);
    }
#else
    for (int i = 0; i < GROUP / 2; i += WIDTH) {
#ifdef __AVX2__
        ivec codes = (ivec)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(from + i)));
#else
        ivec codes = __builtin_convertvector(__builtin_convertvector(*(const bvec *)(from + i), hvec), ivec);
#endif
        at(to, i) = __builtin_convertvector(codes & 15, vec) * scale + low;
        at(to, i + GROUP / 2) = __builtin_convertvector(codes >> 4, vec) * scale + low;
    }
#endif
}

/* Values [first, first + n) of a packed vector of `total` groups. */
static void unpack(const uint8_t *from, int64_t total, int64_t first, int64_t n, float *to) {
    const uint8_t *constants = from + total * (GROUP / 2);
    for (int64_t g = first / GROUP; g * GROUP < first + n; g++) {
        uint16_t halves_of[2];
        memcpy(halves_of, constants + g * 4, 4);
        float scale = half_to_float(halves_of[0]), low = half_to_float(halves_of[1]), values[GROUP];
        int64_t begin = g * GROUP - first;
        if (begin >= 0 && begin + GROUP <= n) {
            unpack_group(from + g * (GROUP / 2), scale, low, to + begin);
            continue;
        }
        unpack_group(from + g * (GROUP / 2), scale, low, values);
        for (int64_t i = 0; i < GROUP; i++)
            if (begin + i >= 0 && begin + i < n) to[begin + i] = values[i];
    }
}

/* Bytes from a stored vector's beginning to its value `first`; packed, to the byte at least that far. */
inlined int64_t bytes_before(enum kind kind, int64_t first) {
    return kind == FLOAT32 ? 4 * first : kind == PACKED ? first / GROUP * (GROUP / 2) : 2 * first;
}

/* Ask for the lines of a block: values [first, first + head_dim) of its tokens, of which `left` are left. */
inlined void prefetch(enum kind kind, const struct job *job, const char *from, int64_t left, int64_t first) {
    int64_t begin = bytes_before(kind, first);
    int64_t end = bytes_before(kind, first + job->head_dim + (kind == PACKED ? GROUP - 1 : 0));
    for (int t = 0; t < TOKENS && t < left; t++, from += job->token_bytes) {
        const char *line = from + begin - (uintptr_t)(from + begin) % LINE;
        for (; line < from + end; line += LINE) __builtin_prefetch(line);
        if (kind == PACKED) __builtin_prefetch(from + job->groups * (GROUP / 2) + first / GROUP * 4);
    }
}

/* Where a block's values are: as they are stored, or as float32 in `tile`. Tokens past the end repeat the last one. */
inlined void find(enum kind kind, int tiled, const struct job *job, const char *from, int64_t left, int64_t first,
                  float *tile, const void *found[TOKENS]) {
    int64_t n = job->head_dim;
    for (int t = 0; t < TOKENS; t++) {
        if (t && t < left) from += job->token_bytes;
        const char *values = from + bytes_before(kind, first);
        float *to = tile + t * STRIDE;
        found[t] = tiled ? (const void *)to : values;
        int64_t i = 0;
        if (kind == PACKED) {
            unpack((const uint8_t *)from, job->groups, first, n, to);
        } else if (tiled) {
            for (; i + WIDTH <= n; i += WIDTH) at(to, i) = several(kind, values, i);
            for (; i < n; i++) to[i] = one(kind, values, i);
        }
    }
}

/* Scores of a block for one query. */
inlined void score(enum kind kind, const float *query, const void *const keys[TOKENS], int64_t n, float *scores) {
    vec totals[TOKENS] = {};
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        vec q = at(query, i);
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++) totals[t] += q * several(kind, keys[t], i);
    }
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; t += 4)
        *(quarter *)(scores + t) = sums(totals[t], totals[t + 1], totals[t + 2], totals[t + 3]);
    for (; i < n; i++)
        for (int t = 0; t < TOKENS; t++) scores[t] += query[i] * one(kind, keys[t], i);
}

/* Add a block's weighted values to one query's result. */
inlined void add(enum kind kind, float *out, const void *const values[TOKENS], int64_t n, const float *weights) {
    vec w[TOKENS];
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; t++) w[t] = splat(weights[t]);
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        vec even = at(out, i), odd = {};
#pragma GCC unroll 4
        for (int t = 0; t < TOKENS; t += 2)
            even += w[t] * several(kind, values[t], i), odd += w[t + 1] * several(kind, values[t + 1], i);
        at(out, i) = even + odd;
    }
    for (; i < n; i++)
        for (int t = 0; t < TOKENS; t++) out[i] += weights[t] * one(kind, values[t], i);
}

/* A span's scores of one query to weights; its largest score and sum so far are kept, `out` is rescaled. */
static void softmax(const struct job *job, float *scores, int64_t n, float *largest, float *total, float *out) {
    const float log2_e = 1.44269504f, scale = job->softcap != 0 ? job->softcap * log2_e : job->scale * log2_e;
    float most = *largest;
    if (job->softcap != 0)
        for (int64_t i = 0; i < n; i++) scores[i] = tanhf(scores[i] * job->scale / job->softcap);
    for (int64_t i = 0; i < n; i++) scores[i] *= scale;
    for (int64_t i = n; i < SPAN; i++) scores[i] = -INFINITY;
    vec maxima = splat(most), parts = {};
    for (int64_t i = 0; i < n; i += WIDTH) {
        vec x = at(scores, i);
        maxima = pick(x > maxima, x, maxima);
    }
    for (int i = 0; i < WIDTH; i++) most = maxima[i] > most ? maxima[i] : most;
    for (int64_t i = 0; i < n; i += WIDTH) parts += at(scores, i) = exp2_of(at(scores, i) - most);
    for (int64_t i = n; i < SPAN; i++) scores[i] = 0;
    quarter sum = quarter_sum(parts);
    float shrink = exp2f(*largest - most);
    *largest = most;
    *total = *total * shrink + (sum[0] + sum[1]) + (sum[2] + sum[3]);
    if (shrink != 1)
        for (int64_t i = 0; i < job->head_dim; i++) out[i] *= shrink;
}

/* One task. `room` is for [heads * group, SPAN + 2] floats. `kind` and `tiled` are constants where this is called. */
inlined void attend_as(enum kind kind, int tiled, const struct job *job, int64_t row, int64_t head, int64_t heads,
                       float *room) {
    float tile[TOKENS * STRIDE] __attribute__((aligned(LINE)));
    const enum kind read_as = tiled ? FLOAT32 : kind;
    int64_t dim = job->head_dim, group = tiled ? job->group : 1, queries = heads * group, stop = job->stop, places = stop - job->start;
    int64_t begin = job->pads && job->pads[row] > job->start ? job->pads[row] : job->start;
    int64_t offset = (row * job->heads + head) * group * dim, token_bytes = job->token_bytes;
    const char *keys = job->data + row * job->row_bytes, *data[2] = {keys, keys + job->value_bytes};
    const float *query = job->query + offset;
    float *out = job->out + offset, *largest = room + queries * SPAN, *total = largest + queries;
    memset(out, 0, sizeof(float) * queries * dim);
    for (int64_t i = 0; i < queries; i++) largest[i] = -INFINITY, total[i] = 0;
    for (int64_t first = begin, end; first < stop; first = end) {
        int64_t base = first - first % places; /* of the ring's round: token t lies in place t mod places */
        end = first + SPAN < stop ? first + SPAN : stop;
        if (end > base + places) end = base + places;
        int64_t following = end - base < places ? end - base : 0; /* the place of `end` */
        for (int is_value = 0; is_value < 2; is_value++) {
            for (int64_t i = 0; i < queries && is_value; i++)
                softmax(job, room + i * SPAN, end - first, largest + i, total + i, out + i * dim);
            for (int64_t token = first; token < end; token += TOKENS)
                for (int64_t h = 0; h < heads; h++) {
                    int64_t later = token + (h + AHEAD) / heads * TOKENS, later_head = head + (h + AHEAD) % heads;
                    int other = later >= end; /* K's end leads to V, V's to the next span */
                    if (other) later = is_value ? end : first;
                    int64_t place = other && is_value ? following : later - base;
                    prefetch(kind, job, data[is_value ^ other] + place * token_bytes, stop - later, later_head * dim);
                    const void *found[TOKENS];
                    const char *block = data[is_value] + (token - base) * token_bytes;
                    find(kind, tiled, job, block, end - token, (head + h) * dim, tile, found);
                    for (int64_t i = h * group; i < (h + 1) * group; i++) {
                        float *scores = room + i * SPAN + token - first;
                        if (is_value)
                            add(read_as, out + i * dim, found, dim, scores);
                        else
                            score(read_as, query + i * dim, found, dim, scores);
                    }
                }
        }
    }
    for (int64_t i = 0; i < queries; i++)
        for (int64_t d = 0; d < dim; d++) out[i * dim + d] /= total[i];
}

static void attend_heads(const struct job *job, int64_t row, int64_t head, int64_t heads, float *room) {
    int tiled = job->group > 1;
    switch (job->kind * 2 + tiled) {
    case FLOAT32 * 2: attend_as(FLOAT32, 0, job, row, head, heads, room); break;
    case FLOAT32 * 2 + 1: attend_as(FLOAT32, 1, job, row, head, heads, room); break;
    case FLOAT16 * 2: attend_as(FLOAT16, 0, job, row, head, heads, room); break;
    case FLOAT16 * 2 + 1: attend_as(FLOAT16, 1, job, row, head, heads, room); break;
    case BFLOAT16 * 2: attend_as(BFLOAT16, 0, job, row, head, heads, room); break;
    case BFLOAT16 * 2 + 1: attend_as(BFLOAT16, 1, job, row, head, heads, room); break;
    default: attend_as(PACKED, 1, job, row, head, heads, room);
    }
}

/* The next units of the counter for one thread: a share of what is left, so that all threads end at about the same time
   although each begins with much at once; of one row, and no more than `most`. False when nothing is left. */
static int take(int64_t *taken, int64_t rows, int64_t parts, int64_t most, int64_t threads, int64_t *first, int64_t *count) {
    int64_t all = rows * parts, begin = __atomic_load_n(taken, __ATOMIC_RELAXED), n;
    do {
        if (begin >= all) return 0;
        n = (all - begin) / (LEFT_TO_OTHERS * threads);
        n = n < 1 ? 1 : n > most ? most : n;
        if (n > parts - begin % parts) n = parts - begin % parts;
    } while (!__atomic_compare_exchange_n(taken, &begin, begin + n, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    *first = begin, *count = n;
    return 1;
}

static int64_t at_most(int64_t x, int64_t most) { return x < most ? x : most; }

/* 0; 1 when memory ran out; 2 when heads are too large. */
int attend(const struct job *job) {
    if (job->head_dim > MAX_HEAD_DIM) return 2;
    int64_t unit = UNIT_VALUES / job->head_dim > 1 ? at_most(UNIT_VALUES / job->head_dim, job->heads) : 1; /* heads */
    int64_t most = TASK_VALUES / job->head_dim > unit ? TASK_VALUES / job->head_dim / unit : 1;            /* units */
    int64_t parts = (job->heads + unit - 1) / unit, queries = most * unit * job->group, taken = 0;
    int failed = 0;
#pragma omp parallel num_threads(job->threads) reduction(| : failed)
    {
        float *room = malloc(sizeof(float) * queries * (SPAN + 2));
        int64_t first, count;
        failed = !room;
        while (room && take(&taken, job->rows, parts, most, job->threads, &first, &count)) {
            int64_t head = first % parts * unit;
            attend_heads(job, first / parts, head, at_most(count * unit, job->heads - head), room);
        }
        free(room);
    }
    return failed;
}
