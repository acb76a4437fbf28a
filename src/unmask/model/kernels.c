/* Inference of a few rows on a CPU: products with large weights, attention, and what lies between them.
 *
 * Every result of a row is summed in one fixed order, whatever rows run beside it: it is the same bits in any batch.
 * `threads` share out whole results. Compiled on the user's machine for its processor (native.py).
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define PANEL (2 * LANES) /* outputs that weights are laid out by */

/* Rows that share a reading of the weights: as many as registers hold; CASE for each number of them. */
#if defined(__AVX512F__)
#define TILE 12
#define EACH_TILE(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#elif defined(__aarch64__)
#define TILE 8
#define EACH_TILE(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#else
#define TILE 4
#define EACH_TILE(CASE) CASE(1) CASE(2) CASE(3) CASE(4)
#endif

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

long panel(void) { return PANEL; }

INLINE float sum_of(vec v)
{
    ivec lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    for (int half = LANES / 2; half; half /= 2) v += __builtin_shuffle(v, lane ^ half);
    return v[0];
}

/* Half as many vectors, each of what was two halves of two, added. */
INLINE void fold(vec *v, const int half)
{
    ivec low;
    for (int i = 0; i < LANES; i++) low[i] = i + i / half * half;
#pragma GCC unroll 16
    for (int i = 0; i < half; i++)
        v[i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], low) + __builtin_shuffle(v[2 * i], v[2 * i + 1], low + half);
}

/* The sums of as many vectors as one has lanes, each in the order of sum_of. */
INLINE vec sums_of(vec v[LANES])
{
#if LANES > 8
    fold(v, 8);
#endif
#if LANES > 4
    fold(v, 4);
#endif
    fold(v, 2);
    fold(v, 1);
    return v[0];
}

INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

INLINE vec all(float x) { return (vec){} + x; }

/* e^x within 2 units in the last place, by Cephes' reduction and polynomial; x is clipped to +-87. */
INLINE vec exp_of(vec x)
{
    x = choose(x > 87.0f, all(87.0f), x);
    x = choose(x < -87.0f, all(-87.0f), x);
    vec turns = x * 1.44269504088896341f;
    ivec whole = __builtin_convertvector(turns + choose(turns < 0, all(-0.5f), all(0.5f)), ivec);
    vec n = __builtin_convertvector(whole, vec);
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vec)((whole + 127) << 23);
}

/* ---- Products: y = x w^T + bias, for rows x (rows, in) and y (rows, out). ---- */

/* Weights (out / PANEL, in, PANEL); rows of x and y lie a stride apart. What is in y stays in the sum where `adds`. */
INLINE void tile_float(
    const int rows, const float *x, long x_stride, const float *w, const vec bias[2], float *y, long y_stride, int adds, long in, long width)
{
    vec sum[TILE][2];
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (vec){};
    for (long k = 0; k < in; k++, w += PANEL) {
        vec w0 = *(const vec *)w, w1 = *(const vec *)(w + LANES);
        for (int r = 0; r < rows; r++) {
            float each = x[r * x_stride + k];
            sum[r][0] += each * w0;
            sum[r][1] += each * w1;
        }
    }
    for (int r = 0; r < rows; r++) {
        vec base[2] = {bias[0], bias[1]};
        if (adds) memcpy(base, y + r * y_stride, width * sizeof(float));
        sum[r][0] += base[0];
        sum[r][1] += base[1];
        memcpy(y + r * y_stride, sum[r], width * sizeof(float));
    }
}

void product_float(
    const float *x, long x_stride, const float *weights, const float *bias, float *y, long y_stride, int adds, long rows, long in, long out, int threads)
{
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long begin = 0; begin < out; begin += PANEL) {
        const float *w = weights + begin * in;
        long width = out - begin < PANEL ? out - begin : PANEL;
        vec added[2] = {};
        if (bias) memcpy(added, bias + begin, width * sizeof(float));
        for (long r = 0; r < rows; r += TILE) {
#define CASE(n) case n: tile_float(n, x + r * x_stride, x_stride, w, added, y + r * y_stride + begin, y_stride, adds, in, width); break;
            switch (rows - r < TILE ? rows - r : TILE) { EACH_TILE(CASE) }
#undef CASE
        }
    }
}

/* Four products of unsigned by signed bytes are added to each sum, exactly. */
INLINE ivec dot(ivec sum, ivec unsigned_bytes, ivec signed_bytes)
{
#if defined(__AVX512VNNI__)
    return (ivec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)unsigned_bytes, (__m512i)signed_bytes);
#elif defined(__AVXVNNI__)
    return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)unsigned_bytes, (__m256i)signed_bytes);
#else
    for (int i = 0; i < 4; i++) { /* byte i of every four */
        ivec x = unsigned_bytes >> 8 * i & 255, w = signed_bytes << (24 - 8 * i) >> 24;
        sum += x * w;
    }
    return sum;
#endif
}

/* Round a row to 128 + [-127, 127], its largest number being 127, and return that number; NaN where there is one. */
static float round_row(const float *x, long in, long padded, uint8_t *bytes)
{
    vec most = {}, zeros = {};
    long k = 0;
    for (; k + LANES <= in; k += LANES) {
        vec size = (vec)(*(const ivec *)(x + k) & 0x7fffffff);
        most = choose(size > most, size, most);
        zeros += size * 0;
    }
    float peak = 0, spoilt = sum_of(zeros);
    for (int i = 0; i < LANES; i++) peak = most[i] > peak ? most[i] : peak;
    for (; k < in; k++) {
        peak = fabsf(x[k]) > peak ? fabsf(x[k]) : peak;
        spoilt += x[k] * 0;
    }
    float inverse = peak > 0 ? 1 / peak : 0;
    for (k = 0; k < in; k++) bytes[k] = (uint8_t)(int32_t)(x[k] * inverse * 127 + 128.5f);
    memset(bytes + in, 0, padded - in);
    return peak + spoilt;
}

/* Weights (out / PANEL, in / 4, PANEL, 4), `in` a multiple of 4; `zero`: 128 times the sum of each output's. */
INLINE void tile_bytes(
    const int rows, const uint8_t *x, long in, const int8_t *w, const float *unit, const int32_t *zero, const vec bias[2], const float *peak, float *y, long out, long width)
{
    ivec sum[TILE][2];
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (ivec){};
    for (long k = 0; k < in; k += 4, w += 4 * PANEL) {
        ivec w0 = *(const ivec *)w, w1 = *(const ivec *)(w + 4 * LANES);
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * in + k, 4);
            ivec each = (ivec){} + four;
            sum[r][0] = dot(sum[r][0], each, w0);
            sum[r][1] = dot(sum[r][1], each, w1);
        }
    }
    for (int r = 0; r < rows; r++) {
        vec found[2];
        for (int half = 0; half < 2; half++) {
            vec whole = __builtin_convertvector(sum[r][half] - ((const ivec *)zero)[half], vec);
            found[half] = whole * ((const vec *)unit)[half] * peak[r] + bias[half];
        }
        memcpy(y + r * out, found, width * sizeof(float));
    }
}

/* `unit` and `zero` reach to a whole panel. */
void product_bytes(
    const float *x, const int8_t *weights, const float *unit, const int32_t *zero, const float *bias, float *y, long rows, long in, long out, int threads)
{
    long padded = (in + 3) / 4 * 4;
    float *peaks = malloc(rows * (sizeof(float) + padded));
    uint8_t *bytes = (uint8_t *)(peaks + rows);
    for (long r = 0; r < rows; r++) peaks[r] = round_row(x + r * in, in, padded, bytes + r * padded);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long begin = 0; begin < out; begin += PANEL) {
        const int8_t *w = weights + begin * padded;
        long width = out - begin < PANEL ? out - begin : PANEL;
        vec added[2] = {};
        if (bias) memcpy(added, bias + begin, width * sizeof(float));
        for (long r = 0; r < rows; r += TILE) {
#define CASE(n) case n: tile_bytes(n, bytes + r * padded, padded, w, unit + begin, zero + begin, added, peaks + r, y + r * out + begin, out, width); break;
            switch (rows - r < TILE ? rows - r : TILE) { EACH_TILE(CASE) }
#undef CASE
        }
    }
    free(peaks);
}

/* ---- Between products ---- */

/* y = weight * x / rms(x), rows (rows, size). */
void rms_norm(const float *x, const float *weight, float *y, long rows, long size, float eps)
{
    for (long r = 0; r < rows; r++, x += size, y += size) {
        vec sum = {};
        long k = 0;
        for (; k + LANES <= size; k += LANES) sum += *(const vec *)(x + k) * *(const vec *)(x + k);
        float total = sum_of(sum);
        for (; k < size; k++) total += x[k] * x[k];
        float scale = 1 / sqrtf(total / size + eps);
        for (k = 0; k < size; k++) y[k] = weight[k] * (x[k] * scale);
    }
}

/* y = silu(gate) * up, of rows (rows, 2 size) that hold both. */
void gated(const float *x, float *y, long rows, long size)
{
    for (long r = 0; r < rows; r++, x += 2 * size, y += size) {
        long k = 0;
        for (; k + LANES <= size; k += LANES) {
            vec gate = *(const vec *)(x + k), up = *(const vec *)(x + size + k);
            *(vec *)(y + k) = gate / (1 + exp_of(-gate)) * up;
        }
        if (k < size) { /* the same sums for what fills no vector */
            vec gate = {}, up = {};
            memcpy(&gate, x + k, (size - k) * sizeof(float));
            memcpy(&up, x + size + k, (size - k) * sizeof(float));
            vec last = gate / (1 + exp_of(-gate)) * up;
            memcpy(y + k, &last, (size - k) * sizeof(float));
        }
    }
}

/* Turn the first `heads` heads of each row (rows, row_size) by its position, in place: cos and sin (rows, size). */
void turn(float *x, const float *cos, const float *sin, long rows, long row_size, long heads, long size)
{
    long half = size / 2;
    for (long r = 0; r < rows; r++, cos += size, sin += size)
        for (long h = 0; h < heads; h++) {
            float *first = x + r * row_size + h * size, *second = first + half;
            for (long i = 0; i < half; i++) {
                float a = first[i], b = second[i];
                first[i] = a * cos[i] + b * sin[i];
                second[i] = b * cos[half + i] + a * sin[half + i];
            }
        }
}

/* ---- Attention ---- */

/* Where cached keys or values lie: position p of a row, head h, at
 * pages[row, p / page_size] * page_stride + p % page_size * position_stride + h * head_stride. */
struct cache {
    const int64_t *pages;
    long most_pages, page_size, page_stride, position_stride, head_stride;
};

INLINE long place_of(const struct cache *cache, long row, long position, long head)
{
    long page = cache->pages[row * cache->most_pages + position / cache->page_size];
    return page * cache->page_stride + position % cache->page_size * cache->position_stride + head * cache->head_stride;
}

/* What one query sees in some heads that share a key head: `count` keys and values, in order of their positions.
 * q, y: (heads, size); `scores` (heads, count + LANES) is room for work. */
INLINE void attend_heads(
    const int heads, const float *q, const float *const *keys, const float *const *values, long count, float *scores, float *y, const long size, float scale)
{
    long room = count + LANES;
    for (long begin = 0; begin < count; begin += LANES) {
        vec found[4][LANES];
        for (long j = 0; j < LANES; j++) { /* beyond the last key any will do */
            const float *key = keys[begin + j < count ? begin + j : begin];
            vec sum[4] = {};
            long d = 0;
            for (; d + LANES <= size; d += LANES)
                for (int h = 0; h < heads; h++) sum[h] += *(const vec *)(q + h * size + d) * *(const vec *)(key + d);
            for (; d < size; d++)
                for (int h = 0; h < heads; h++) sum[h][0] += q[h * size + d] * key[d];
            for (int h = 0; h < heads; h++) found[h][j] = sum[h];
        }
        for (int h = 0; h < heads; h++) *(vec *)(scores + h * room + begin) = sums_of(found[h]) * scale;
    }
    float share[4];
    for (int h = 0; h < heads; h++) {
        float *own = scores + h * room, most = own[0];
        for (long j = 1; j < count; j++) most = own[j] > most ? own[j] : most;
        vec sum = {};
        for (long j = 0; j < count; j += LANES) {
            vec each = exp_of(*(vec *)(own + j) - most);
            for (long beyond = count - j; beyond < LANES; beyond++) each[beyond] = 0;
            *(vec *)(own + j) = each;
            sum += each;
        }
        share[h] = 1 / sum_of(sum);
    }
    long d = 0;
    for (; d + 4 * LANES <= size; d += 4 * LANES) {
        vec found[4][4] = {};
        for (long j = 0; j < count; j++)
            for (int i = 0; i < 4; i++) {
                vec value = *(const vec *)(values[j] + d + i * LANES);
                for (int h = 0; h < heads; h++) found[h][i] += scores[h * room + j] * value;
            }
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < 4; i++) *(vec *)(y + h * size + d + i * LANES) = found[h][i] * share[h];
    }
    for (; d < size; d++)
        for (int h = 0; h < heads; h++) {
            float found = 0;
            for (long j = 0; j < count; j++) found += scores[h * room + j] * values[j][d];
            y[h * size + d] = found * share[h];
        }
}

static void attend_group(
    long heads, const float *q, const float *const *keys, const float *const *values, long count, float *scores, float *y, long size, float scale)
{
    for (; heads > 0; heads -= 4, q += 4 * size, y += 4 * size) {
#define CASE(n) case n: \
        if (size == 64) attend_heads(n, q, keys, values, count, scores, y, 64, scale); \
        else if (size == 128) attend_heads(n, q, keys, values, count, scores, y, 128, scale); \
        else attend_heads(n, q, keys, values, count, scores, y, size, scale); \
        break;
        switch (heads < 4 ? heads : 4) {
            CASE(1) CASE(2) CASE(3) CASE(4)
        }
#undef CASE
    }
}

/* y = softmax(q k / sqrt(size)) v for packed tokens; keys and values of those that are stored go to the cache first.
 *
 * q, k, v: rows that lie `strides` apart, y (tokens, heads, size). `facts` (tokens, 3 + 2 spans): the cache row, how many of
 * its positions are seen, where the token is stored or -1; then the begins and ends of the packed tokens that it sees. */
void attend(
    const float *q, const float *k, const float *v, const int64_t strides[3], float *y, float *cached_keys, float *cached_values, const struct cache *cache, const int64_t *facts, long tokens, long spans, long heads, long kv_heads, long size, int threads)
{
    long width = 3 + 2 * spans, group = heads / kv_heads;
    float scale = 1 / sqrtf(size);
    for (long i = 0; i < tokens; i++) {
        const int64_t *fact = facts + i * width;
        if (fact[2] >= 0)
            for (long h = 0; h < kv_heads; h++) {
                long place = place_of(cache, fact[0], fact[2], h);
                memcpy(cached_keys + place, k + i * strides[1] + h * size, size * sizeof(float));
                memcpy(cached_values + place, v + i * strides[2] + h * size, size * sizeof(float));
            }
    }
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic, 4)
    for (long task = 0; task < tokens * kv_heads; task++) {
        long i = task / kv_heads, h = task % kv_heads;
        const int64_t *fact = facts + i * width;
        long count = fact[1];
        for (long s = 0; s < spans; s++) count += fact[4 + 2 * s] - fact[3 + 2 * s];
        const float **keys = malloc(count * 2 * sizeof *keys + 4 * (count + LANES) * sizeof(float)), **values = keys + count;
        float *scores = (float *)(values + count);
        long j = 0;
        while (j < fact[1]) { /* a page at a time */
            long place = place_of(cache, fact[0], j, h), rest = fact[1] - j;
            for (long n = rest < cache->page_size ? rest : cache->page_size; n; n--, j++, place += cache->position_stride) {
                keys[j] = cached_keys + place;
                values[j] = cached_values + place;
            }
        }
        for (long s = 0; s < spans; s++)
            for (long other = fact[3 + 2 * s]; other < fact[4 + 2 * s]; other++, j++) {
                keys[j] = k + other * strides[1] + h * size;
                values[j] = v + other * strides[2] + h * size;
            }
        attend_group(group, q + i * strides[0] + h * group * size, keys, values, count, scores, y + (i * heads + h * group) * size, size, scale);
        free(keys);
    }
}
