// Products of bf16 or fp16 activations with 4- or 8-bit integers as they are stored, for CPUs with AVX-512 BF16.
//
// Integers of both widths are exact in bf16, so a product runs on the processor's bf16 dot products with fp32 sums and
// the fp16 scale multiplies the sum of each group of columns: nothing is rounded but the result. An fp16 activation is
// the exact sum of two bf16 numbers and is treated as two rows.
//
// Few rows of activations: integers are decoded in registers and used at once; reading the weight is what takes time.
// More rows: a block of the weight is decoded into a buffer that stays in the cache, and every row multiplies it.
// Activations are brought into the order of the decoded integers first: in each chunk of columns, 4-bit integers give
// all even columns and then all odd ones.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t kLanes = 32;       // bf16 numbers in a register
constexpr int64_t kChunk = 2048;     // columns decoded and multiplied at a time
constexpr int64_t kBlockRows = 8;    // rows of the weight in a decoded block, 32 KiB of a chunk
constexpr int64_t kTileRows = 3;     // rows of activations whose sums with a block stay in registers
constexpr int64_t kBatch = 96;       // rows of activations of which a chunk stays in the cache, 384 KiB
constexpr int64_t kFewRows = 4;      // rows of activations up to which nothing is buffered

constexpr __mmask32 kAll = 0xffffffffu;

using Word = uint16_t;  // the bits of a bf16 number

int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// A chunk of columns inside one group, and where its activations lie in a packed row.
struct Chunk {
  int64_t first, columns, group, offset, length;
};

struct Plan {
  std::vector<Chunk> chunks;
  int64_t stride = 0;  // of a packed row
};

Plan make_plan(int64_t columns, int64_t groups, int64_t bits) {
  Plan plan;
  const int64_t width = columns / groups;
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t first = 0; first < width; first += kChunk) {
      const int64_t count = std::min(kChunk, width - first);
      const int64_t length = bits == 4 ? 2 * padded(count / 2) : padded(count);
      plan.chunks.push_back({g * width + first, count, g, plan.stride, length});
      plan.stride += length;
    }
  }
  plan.stride += kLanes;  // rows a multiple of 4 KiB apart would share the sets of the cache
  return plan;
}

Word bf16_bits(float value) { return c10::BFloat16(value).x; }

// One row of activations in the order of the decoded integers; `part` 1 is what bf16 leaves of an fp16 number.
template <typename T>
void pack_row(const T* x, Word* out, const Plan& plan, int64_t bits, int part) {
  for (const Chunk& chunk : plan.chunks) {
    Word* target = out + chunk.offset;
    std::memset(target, 0, chunk.length * sizeof(Word));
    const int64_t half = bits == 4 ? chunk.length / 2 : 0;
    for (int64_t k = 0; k < chunk.columns; ++k) {
      float value = static_cast<float>(x[chunk.first + k]);
      if (part == 1) value -= static_cast<float>(c10::BFloat16(value));
      const int64_t place = bits == 4 ? k / 2 + (k % 2) * half : k;
      target[place] = bf16_bits(value);
    }
  }
}

// Both nibbles of a byte as bf16. The table has each value twice, because its index is five bits wide: the fifth is
// the lowest bit of the other nibble.
struct Decode4 {
  __m512i table;

  Decode4() {
    alignas(64) Word values[32];
    for (int i = 0; i < 32; ++i) values[i] = bf16_bits(static_cast<float>((i % 16) - (i % 16 > 7 ? 16 : 0)));
    table = _mm512_load_si512(values);
  }

  inline void operator()(const int8_t* bytes, __mmask32 mask, __m512i& even, __m512i& odd) const {
    const __m512i words = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(mask, bytes));
    odd = _mm512_permutexvar_epi16(words, table);
    even = _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4), table);
  }
};

inline __m512i decode8(const int8_t* bytes, __mmask32 mask) {
  const __m256i loaded = _mm256_maskz_loadu_epi8(mask, bytes);
  const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(loaded)));
  const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(loaded, 1)));
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

inline __m512 dot(__m512 sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }

// Adds R rows of the weight times M rows of activations, at the columns of one register of bytes, to `sums`.
template <int R, int M>
inline void step4(const int8_t* w, int64_t w_stride, __mmask32 mask, const Word* x, int64_t x_stride, int64_t half,
                  const Decode4& decode, __m512 (&sums)[R][M]) {
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    __m512i even, odd;
    decode(w + r * w_stride, mask, even, odd);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      sums[r][m] = dot(sums[r][m], even, _mm512_loadu_si512(x + m * x_stride));
      sums[r][m] = dot(sums[r][m], odd, _mm512_loadu_si512(x + m * x_stride + half));
    }
  }
}

template <int R, int M>
inline void step8(const int8_t* w, int64_t w_stride, __mmask32 mask, const Word* x, int64_t x_stride,
                  __m512 (&sums)[R][M]) {
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const __m512i values = decode8(w + r * w_stride, mask);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sums[r][m] = dot(sums[r][m], values, _mm512_loadu_si512(x + m * x_stride));
  }
}

// One chunk of R rows of the weight with M rows of activations, decoded in registers.
template <int R, int M, int Bits>
inline void direct_chunk(const int8_t* w, int64_t w_stride, const Word* x, int64_t x_stride, const Chunk& chunk,
                         const Decode4& table, __m512 (&totals)[R][M]) {
  const Decode4 decode = table;
  const int64_t bytes = chunk.columns * Bits / 8, half = chunk.length / 2;
  w += chunk.first * Bits / 8;
  x += chunk.offset;
  __m512 sums[R][M];  // a copy that stays in registers
  std::memcpy(&sums, &totals, sizeof(sums));
  int64_t k = 0;
  for (; k + kLanes <= bytes; k += kLanes) {
    if constexpr (Bits == 4) step4<R, M>(w + k, w_stride, kAll, x + k, x_stride, half, decode, sums);
    else step8<R, M>(w + k, w_stride, kAll, x + k, x_stride, sums);
  }
  if (k < bytes) {
    const __mmask32 mask = (1u << (bytes - k)) - 1u;
    if constexpr (Bits == 4) step4<R, M>(w + k, w_stride, mask, x + k, x_stride, half, decode, sums);
    else step8<R, M>(w + k, w_stride, mask, x + k, x_stride, sums);
  }
  std::memcpy(&totals, &sums, sizeof(sums));
}

struct Weight {
  const int8_t* data;
  const at::Half* scale;
  int64_t rows, stride, groups, bits;
};

// R rows of the weight from `first` on with M rows of activations; results (M, rows) in fp32.
template <int R, int M>
void direct_rows(const Weight& weight, const Plan& plan, const Word* x, int64_t first, const Decode4& decode,
                 float* result) {
  const int8_t* w = weight.data + first * weight.stride;
  float totals[R][M] = {};
  __m512 sums[R][M];
  for (auto& row : sums) for (auto& sum : row) sum = _mm512_setzero_ps();
  for (size_t c = 0; c < plan.chunks.size(); ++c) {
    const Chunk& chunk = plan.chunks[c];
    if (weight.bits == 4) direct_chunk<R, M, 4>(w, weight.stride, x, plan.stride, chunk, decode, sums);
    else direct_chunk<R, M, 8>(w, weight.stride, x, plan.stride, chunk, decode, sums);
    if (c + 1 < plan.chunks.size() && plan.chunks[c + 1].group == chunk.group) continue;
    for (int r = 0; r < R; ++r) {
      const float scale = weight.scale[(first + r) * weight.groups + chunk.group];
      for (int m = 0; m < M; ++m) {
        totals[r][m] += scale * _mm512_reduce_add_ps(sums[r][m]);
        sums[r][m] = _mm512_setzero_ps();
      }
    }
  }
  for (int r = 0; r < R; ++r) for (int m = 0; m < M; ++m) result[m * weight.rows + first + r] = totals[r][m];
}

template <int M>
void direct(const Weight& weight, const Plan& plan, const Word* x, float* result) {
  const Decode4 decode;
  constexpr int R = 4;
  at::parallel_for(0, (weight.rows + R - 1) / R, 16, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * R; first < std::min(end * R, weight.rows); first += R) {
      if (first + R <= weight.rows) direct_rows<R, M>(weight, plan, x, first, decode, result);
      else for (int64_t row = first; row < weight.rows; ++row)
        direct_rows<1, M>(weight, plan, x, row, decode, result);
    }
  });
}

// Decodes one register of bytes.
template <int Bits>
inline void decode_step(const int8_t* w, __mmask32 mask, int64_t half, const Decode4& decode, Word* out) {
  if constexpr (Bits == 4) {
    __m512i even, odd;
    decode(w, mask, even, odd);
    _mm512_store_si512(out, even);
    _mm512_store_si512(out + half, odd);
  } else {
    _mm512_store_si512(out, decode8(w, mask));
  }
}

// Decodes `rows` rows of one chunk into a buffer of rows `stride` apart.
template <int Bits>
void decode_chunk(const Weight& weight, const Chunk& chunk, int64_t first, int64_t rows, const Decode4& table,
                  Word* buffer, int64_t stride) {
  const Decode4 decode = table;
  const int64_t bytes = chunk.columns * Bits / 8, half = chunk.length / 2, whole = bytes / kLanes * kLanes;
  for (int64_t r = 0; r < rows; ++r) {
    const int8_t* w = weight.data + (first + r) * weight.stride + chunk.first * Bits / 8;
    Word* out = buffer + r * stride;
#pragma GCC unroll 4
    for (int64_t k = 0; k < whole; k += kLanes) decode_step<Bits>(w + k, kAll, half, decode, out + k);
    if (whole < bytes) decode_step<Bits>(w + whole, (1u << (bytes - whole)) - 1u, half, decode, out + whole);
  }
}

// The eight sums of the lanes of eight registers.
inline __m256 sums_of(const __m512 (&a)[kBlockRows]) {
  __m512 pairs[4], fours[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]), _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]));
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512d first = _mm512_castps_pd(pairs[2 * i]), second = _mm512_castps_pd(pairs[2 * i + 1]);
    fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(first, second)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(first, second)));
  }
  const __m512 halves = _mm512_add_ps(_mm512_shuffle_f32x4(fours[0], fours[1], 0x44),
                                      _mm512_shuffle_f32x4(fours[0], fours[1], 0xee));
  const __m512 sums = _mm512_add_ps(_mm512_shuffle_f32x4(halves, halves, 0x88),
                                    _mm512_shuffle_f32x4(halves, halves, 0xdd));
  return _mm512_castps512_ps256(sums);
}

// The rows of the buffer times M rows of activations, scaled and added to the results of the block.
template <int M>
inline void tile(const Word* w, int64_t w_stride, const Word* x, int64_t x_stride, int64_t length, __m256 scale,
                 float* result) {
  __m512 sums[M][kBlockRows];
#pragma GCC unroll 3
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int r = 0; r < kBlockRows; ++r) sums[m][r] = _mm512_setzero_ps();
  for (int64_t k = 0; k < length; k += kLanes) {
    __m512i other[M];
#pragma GCC unroll 3
    for (int m = 0; m < M; ++m) other[m] = _mm512_loadu_si512(x + m * x_stride + k);
#pragma GCC unroll 8
    for (int r = 0; r < kBlockRows; ++r) {
      const __m512i values = _mm512_load_si512(w + r * w_stride + k);
#pragma GCC unroll 3
      for (int m = 0; m < M; ++m) sums[m][r] = dot(sums[m][r], values, other[m]);
    }
  }
#pragma GCC unroll 3
  for (int m = 0; m < M; ++m) {
    float* target = result + m * kBlockRows;
    _mm256_storeu_ps(target, _mm256_fmadd_ps(scale, sums_of(sums[m]), _mm256_loadu_ps(target)));
  }
}

void multiply_chunk(const Word* w, int64_t w_stride, const Word* x, int64_t x_stride, int64_t length, int64_t batch,
                    __m256 scale, float* result) {
  int64_t m = 0;
  for (; m + kTileRows <= batch; m += kTileRows)
    tile<kTileRows>(w, w_stride, x + m * x_stride, x_stride, length, scale, result + m * kBlockRows);
  if (batch - m == 2) tile<2>(w, w_stride, x + m * x_stride, x_stride, length, scale, result + m * kBlockRows);
  else if (batch - m == 1) tile<1>(w, w_stride, x + m * x_stride, x_stride, length, scale, result + m * kBlockRows);
}

void buffered(const Weight& weight, const Plan& plan, const Word* x, int64_t batch, float* result) {
  const Decode4 decode;
  const int64_t blocks = (weight.rows + kBlockRows - 1) / kBlockRows;
  constexpr int64_t stride = kChunk + kLanes;
  at::parallel_for(0, blocks, 4, [&](int64_t begin, int64_t end) {
    alignas(64) Word buffer[kBlockRows * stride] = {};
    std::vector<float> sums(batch * kBlockRows);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlockRows, rows = std::min(kBlockRows, weight.rows - first);
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (const Chunk& chunk : plan.chunks) {
        float scale[kBlockRows] = {};
        for (int64_t r = 0; r < rows; ++r) scale[r] = weight.scale[(first + r) * weight.groups + chunk.group];
        if (weight.bits == 4) decode_chunk<4>(weight, chunk, first, rows, decode, buffer, stride);
        else decode_chunk<8>(weight, chunk, first, rows, decode, buffer, stride);
        multiply_chunk(buffer, stride, x + chunk.offset, plan.stride, chunk.length, batch, _mm256_loadu_ps(scale),
                       sums.data());
      }
      for (int64_t m = 0; m < batch; ++m)
        std::memcpy(result + m * weight.rows + first, sums.data() + m * kBlockRows, rows * sizeof(float));
    }
  });
}

template <typename T>
std::vector<Word> pack(const at::Tensor& x, const Plan& plan, int64_t bits, int parts) {
  const int64_t batch = x.size(0), columns = x.size(1);
  std::vector<Word> packed(batch * parts * plan.stride);
  const T* data = x.const_data_ptr<T>();
  at::parallel_for(0, batch * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      pack_row(data + row / parts * columns, packed.data() + row * plan.stride, plan, bits, row % parts);
  });
  return packed;
}

// x (M, K) bf16 or fp16, weight as stored, scale (N, G) fp16, all contiguous -> (M, N) in the dtype of x.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale, int64_t bits) {
  const int64_t batch = x.size(0), columns = x.size(1), rows = scale.size(0), groups = scale.size(1);
  const bool is_half = x.scalar_type() == at::kHalf;
  TORCH_CHECK(is_half || x.scalar_type() == at::kBFloat16, "x must be bf16 or fp16, not ", x.scalar_type());
  TORCH_CHECK(weight.scalar_type() == at::kChar && scale.scalar_type() == at::kHalf, "int8 integers and fp16 scales");
  TORCH_CHECK(bits == 4 || bits == 8, "bits must be 4 or 8");
  TORCH_CHECK(x.is_contiguous() && weight.is_contiguous() && scale.is_contiguous(), "all tensors must be contiguous");
  TORCH_CHECK(groups > 0 && columns % groups == 0 && weight.numel() == rows * columns * bits / 8 &&
                  (bits == 8 || columns / groups % 2 == 0), "shapes do not belong together");
  const int parts = is_half ? 2 : 1;
  const Plan plan = make_plan(columns, groups, bits);
  const std::vector<Word> packed = is_half ? pack<at::Half>(x, plan, bits, parts)
                                           : pack<at::BFloat16>(x, plan, bits, parts);
  const Weight stored{weight.const_data_ptr<int8_t>(), scale.const_data_ptr<at::Half>(), rows, columns * bits / 8,
                      groups, bits};
  at::Tensor result = at::empty({batch * parts, rows}, x.options().dtype(at::kFloat));
  float* out = result.data_ptr<float>();
  const int64_t packed_rows = batch * parts;
  if (packed_rows == 1) direct<1>(stored, plan, packed.data(), out);
  else if (packed_rows == 2) direct<2>(stored, plan, packed.data(), out);
  else if (packed_rows == 3) direct<3>(stored, plan, packed.data(), out);
  else if (packed_rows == kFewRows) direct<4>(stored, plan, packed.data(), out);
  for (int64_t m = 0; packed_rows > kFewRows && m < packed_rows; m += kBatch)
    buffered(stored, plan, packed.data() + m * plan.stride, std::min(kBatch, packed_rows - m), out + m * rows);
  if (is_half) result = result.view({batch, 2, rows}).sum(1);
  return result.to(x.scalar_type());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(weight_only_int_cpu, library) {
  library.def("linear(Tensor x, Tensor weight, Tensor scale, int bits) -> Tensor");
  library.impl("linear", c10::DispatchKey::CPU, linear);
}
