/* Decode attention on the CPU: one query token a row over cached tokens laid out [token, K or V, row, vector].

   A task is one row and some of its K and V heads, so that each token is a few contiguous KB. Four tokens of a head
   are turned to float32 in the first-level cache at a time, whatever they are stored as; the softmax is online, over
   tiles of tokens. Sums are float32. NaN in, NaN out. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#ifdef __AVX512F__
#define WIDTH 16
#else
#define WIDTH 8
#endif
#define TOKENS 4 /* turned to float32 at once */
#define TILE 128 /* tokens between updates of the softmax's maximum */
#define GROUP 64 /* values of a quantised group: byte b of 32 holds values b and b + 32 */
#define MAX_HEAD_DIM 512
#define TASK_VALUES 2048 /* of a token that a task reads at most, unless one head has more */

typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef uint16_t hvec __attribute__((vector_size(2 * WIDTH), aligned(2)));
typedef uint8_t bvec __attribute__((vector_size(WIDTH), aligned(1)));
typedef float quarter __attribute__((vector_size(16), aligned(4)));

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

static inline quarter quarter_sum(vec x) {
    union { vec all; quarter part[WIDTH / 4]; } parts = {x};
    quarter total = parts.part[0];
    for (int i = 1; i < WIDTH / 4; i++) total += parts.part[i];
    return total;
}

/* The sums of four vectors. */
static inline quarter sums(vec a, vec b, vec c, vec d) {
    quarter w = quarter_sum(a), x = quarter_sum(b), y = quarter_sum(c), z = quarter_sum(d);
#ifdef __F16C__
    _MM_TRANSPOSE4_PS(w, x, y, z);
    return (w + x) + (y + z);
#else
    return (quarter){w[0] + w[1] + w[2] + w[3], x[0] + x[1] + x[2] + x[3], y[0] + y[1] + y[2] + y[3],
                     z[0] + z[1] + z[2] + z[3]};
#endif
}

/* 2^x for x <= 0, within 2 ulp and never below 2^-126; NaN stays NaN. Taylor series of 2^f on [-0.5, 0.5]. */
static inline vec exp2_of(vec x) {
    ivec tiny = x < -126.0f;
    x = (vec)(((ivec)x & ~tiny) | ((ivec)splat(-126.0f) & tiny));
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

static void widen_halves(const uint16_t *from, int64_t n, float *to) {
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) at(to, i) = halves(from + i);
    for (; i < n; i++) to[i] = half_to_float(from[i]);
}

static void widen_bfloats(const uint16_t *from, int64_t n, float *to) {
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH)
        at(to, i) = (vec)(__builtin_convertvector(*(const hvec *)(from + i), ivec) << 16);
    for (; i < n; i++) {
        union { uint32_t bits; float value; } x = {(uint32_t)from[i] << 16};
        to[i] = x.value;
    }
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
        ivec codes = __builtin_convertvector(__builtin_convertvector(*(const bvec *)(from + i), hvec), ivec);
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

/* Values [first, first + n) of a stored vector as float32: where they are, or in `to`. */
static inline const float *values_of(const struct job *job, const char *from, int64_t first, int64_t n, float *to) {
    switch (job->kind) {
    case FLOAT32: return (const float *)from + first;
    case FLOAT16: widen_halves((const uint16_t *)from + first, n, to); break;
    case BFLOAT16: widen_bfloats((const uint16_t *)from + first, n, to); break;
    default: unpack((const uint8_t *)from, job->groups, first, n, to);
    }
    return to;
}

/* Ask for the lines of the values that values_of will be called for four tokens later. */
static inline void prefetch(const struct job *job, const char *from, int64_t first, int64_t n) {
    int64_t quarter_bytes = job->kind == FLOAT32 ? 16 : job->kind == PACKED ? 2 : 8; /* of four values */
    for (int64_t i = 0; i < n * quarter_bytes / 4; i += 64) __builtin_prefetch(from + first * quarter_bytes / 4 + i);
    if (job->kind == PACKED) __builtin_prefetch(from + job->groups * (GROUP / 2) + first / GROUP * 4);
}

/* Four tokens' values; those past the end repeat the last one. */
static inline void fetch(const struct job *job, const char *from, int64_t left, int64_t first, float *tile,
                         const float *found[TOKENS]) {
    int64_t n = job->head_dim;
    for (int t = 0; t < TOKENS; t++) {
        if (t + TOKENS < left) prefetch(job, from + (t + TOKENS) * job->token_bytes, first, n);
        found[t] = t < left ? values_of(job, from + t * job->token_bytes, first, n, tile + t * n) : found[t - 1];
    }
}

/* Scores of four tokens for one query. */
static inline void dots(const float *query, const float *const keys[TOKENS], int64_t n, float *scores) {
    const float *k0 = keys[0], *k1 = keys[1], *k2 = keys[2], *k3 = keys[3];
    vec t0 = {}, t1 = {}, t2 = {}, t3 = {};
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        vec q = at(query, i);
        t0 += q * at(k0, i), t1 += q * at(k1, i), t2 += q * at(k2, i), t3 += q * at(k3, i);
    }
    *(quarter *)scores = sums(t0, t1, t2, t3);
    for (; i < n; i++)
        for (int t = 0; t < TOKENS; t++) scores[t] += query[i] * keys[t][i];
}

/* The same for two queries, one after the other in memory: keys are loaded once. */
static inline void dots_of_two(const float *query, const float *const keys[TOKENS], int64_t n, float *scores) {
    const float *k0 = keys[0], *k1 = keys[1], *k2 = keys[2], *k3 = keys[3];
    vec t0 = {}, t1 = {}, t2 = {}, t3 = {}, u0 = {}, u1 = {}, u2 = {}, u3 = {};
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        vec q = at(query, i), r = at(query, n + i), a = at(k0, i), b = at(k1, i), c = at(k2, i), d = at(k3, i);
        t0 += q * a, t1 += q * b, t2 += q * c, t3 += q * d;
        u0 += r * a, u1 += r * b, u2 += r * c, u3 += r * d;
    }
    *(quarter *)scores = sums(t0, t1, t2, t3);
    *(quarter *)(scores + TILE) = sums(u0, u1, u2, u3);
    for (; i < n; i++)
        for (int t = 0; t < TOKENS; t++)
            scores[t] += query[i] * keys[t][i], scores[TILE + t] += query[n + i] * keys[t][i];
}

/* Add four weighted values to one query's result. */
static inline void accumulate(float *out, const float *const values[TOKENS], int64_t n, const float *w) {
    const float *v0 = values[0], *v1 = values[1], *v2 = values[2], *v3 = values[3];
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH)
        at(out, i) += (w[0] * at(v0, i) + w[1] * at(v1, i)) + (w[2] * at(v2, i) + w[3] * at(v3, i));
    for (; i < n; i++) out[i] += (w[0] * v0[i] + w[1] * v1[i]) + (w[2] * v2[i] + w[3] * v3[i]);
}

/* The same for two queries: values are loaded once. */
static inline void accumulate_two(float *out, const float *const values[TOKENS], int64_t n, const float *w) {
    const float *v0 = values[0], *v1 = values[1], *v2 = values[2], *v3 = values[3], *x = w + TILE;
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        vec a = at(v0, i), b = at(v1, i), c = at(v2, i), d = at(v3, i);
        at(out, i) += (w[0] * a + w[1] * b) + (w[2] * c + w[3] * d);
        at(out, n + i) += (x[0] * a + x[1] * b) + (x[2] * c + x[3] * d);
    }
    for (; i < n; i++) {
        out[i] += (w[0] * v0[i] + w[1] * v1[i]) + (w[2] * v2[i] + w[3] * v3[i]);
        out[n + i] += (x[0] * v0[i] + x[1] * v1[i]) + (x[2] * v2[i] + x[3] * v3[i]);
    }
}

/* A tile's scores of one query to weights; its largest score and sum so far are kept, `out` is rescaled. */
static void softmax(const struct job *job, float *scores, int64_t n, float *largest, float *total, float *out) {
    const float log2_e = 1.44269504f;
    float most = *largest;
    for (int64_t i = 0; i < n; i++) {
        scores[i] *= job->scale;
        if (job->softcap != 0) scores[i] = job->softcap * tanhf(scores[i] / job->softcap);
        scores[i] *= log2_e;
        most = scores[i] > most ? scores[i] : most;
    }
    for (int64_t i = n; i < TILE; i++) scores[i] = -INFINITY;
    vec parts = {};
    for (int64_t i = 0; i < n; i += WIDTH) parts += at(scores, i) = exp2_of(at(scores, i) - most);
    for (int64_t i = n; i < TILE; i++) scores[i] = 0;
    quarter sum = quarter_sum(parts);
    float shrink = exp2f(*largest - most);
    *largest = most;
    *total = *total * shrink + (sum[0] + sum[1]) + (sum[2] + sum[3]);
    if (shrink != 1)
        for (int64_t i = 0; i < job->head_dim; i++) out[i] *= shrink;
}

struct scratch {
    float tile[TOKENS * MAX_HEAD_DIM];
    float *scores, *largest, *total; /* [queries, TILE], [queries], [queries] */
};

static void attend_heads(const struct job *job, int64_t row, int64_t head, int64_t heads, struct scratch *scratch) {
    int64_t dim = job->head_dim, group = job->group, queries = heads * group;
    int64_t offset = (row * job->heads + head) * group * dim;
    const float *query = job->query + offset, *found[TOKENS];
    float *out = job->out + offset, *scores = scratch->scores, *tile = scratch->tile;
    int64_t begin = job->pads && job->pads[row] > job->start ? job->pads[row] : job->start, count;
    memset(out, 0, sizeof(float) * queries * dim);
    for (int64_t i = 0; i < queries; i++) scratch->largest[i] = -INFINITY, scratch->total[i] = 0;
    for (int64_t first = begin; first < job->stop; first += count) {
        int64_t places = job->stop - job->start, place = first % places;
        count = job->stop - first < places - place ? job->stop - first : places - place;
        count = count < TILE ? count : TILE;
        const char *key = job->data + row * job->row_bytes + place * job->token_bytes, *value = key + job->value_bytes;
        for (int64_t t = 0; t < count; t += TOKENS, key += TOKENS * job->token_bytes)
            for (int64_t h = 0, i = 0; h < heads; h++) {
                fetch(job, key, count - t, (head + h) * dim, tile, found);
                int64_t end = i + group;
                for (; i + 2 <= end; i += 2) dots_of_two(query + i * dim, found, dim, scores + i * TILE + t);
                for (; i < end; i++) dots(query + i * dim, found, dim, scores + i * TILE + t);
            }
        for (int64_t i = 0; i < queries; i++)
            softmax(job, scores + i * TILE, count, scratch->largest + i, scratch->total + i, out + i * dim);
        for (int64_t t = 0; t < count; t += TOKENS, value += TOKENS * job->token_bytes)
            for (int64_t h = 0, i = 0; h < heads; h++) {
                fetch(job, value, count - t, (head + h) * dim, tile, found);
                int64_t end = i + group;
                for (; i + 2 <= end; i += 2) accumulate_two(out + i * dim, found, dim, scores + i * TILE + t);
                for (; i < end; i++) accumulate(out + i * dim, found, dim, scores + i * TILE + t);
            }
    }
    for (int64_t i = 0; i < queries; i++)
        for (int64_t d = 0; d < dim; d++) out[i * dim + d] /= scratch->total[i];
}

/* 0; 1 when memory ran out; 2 when heads are too large. */
int attend(const struct job *job) {
    if (job->head_dim > MAX_HEAD_DIM) return 2;
    int64_t heads = TASK_VALUES / job->head_dim < job->heads ? TASK_VALUES / job->head_dim : job->heads;
    while (heads > 1 && job->rows * ((job->heads + heads - 1) / heads) < 3 * job->threads) heads = (heads + 1) / 2;
    int64_t parts = (job->heads + heads - 1) / heads, queries = heads * job->group;
    int failed = 0;
#pragma omp parallel num_threads(job->threads) reduction(| : failed)
    {
        struct scratch *scratch = malloc(sizeof *scratch);
        float *room = malloc(sizeof(float) * queries * (TILE + 2));
        failed = !scratch || !room;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < job->rows * parts; task++) {
            if (failed) continue;
            int64_t head = task % parts * heads;
            scratch->scores = room;
            scratch->largest = room + queries * TILE;
            scratch->total = scratch->largest + queries;
            attend_heads(job, task / parts, head, job->heads - head < heads ? job->heads - head : heads, scratch);
        }
        free(scratch);
        free(room);
    }
    return failed;
}
