// Products of bf16 or fp16 activations with 4- or 8-bit integers as they are stored, for CPUs with AVX-512 BF16.
//
// Integers of both widths are exact in bf16, so a product runs on the processor's bf16 dot products with fp32 sums and
// the fp16 scale multiplies the sum of each group of columns: nothing is rounded but the result. An fp16 activation is
// the exact sum of two bf16 numbers and is treated as two rows.
//
// Few rows of activations: integers are decoded in registers and used at once; reading the weight is what takes time,
// so rows to come are asked for in advance. More rows: a block of the weight is decoded into a buffer that stays in
// the cache, and every row multiplies it. Activations are brought into the order of the decoded integers first: a
// register of 4-bit integers is read as words of four nibbles: each word's lowest, then each one's second, and so on.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t kLanes = 32;       // bf16 numbers in a register
constexpr int64_t kBytes = 64;       // bytes in a register, and in a line of the cache
constexpr int64_t kChunk = 2048;     // columns of activations that stay in the nearest cache
constexpr int64_t kDirectRows = 24;  // rows of the weight that use them before the next columns; what R below divides
constexpr int64_t kFewRows = 8;      // rows of activations up to which nothing is buffered
constexpr int64_t kBlockRows = 8;    // rows of the weight in a decoded block, 32 KiB of a chunk
constexpr int64_t kTileRows = 3;     // rows of activations whose sums with a block stay in registers
constexpr int64_t kBatch = 96;       // rows of activations of which a chunk stays in the cache, 384 KiB

using Word = uint16_t;  // the bits of a bf16 number

// A chunk of columns inside one group: its bytes in a row of the weight, its activations' place in a packed row.
struct Chunk {
  int64_t first, columns, group, first_byte, bytes, offset, length;
};

// Chunks that lie beside each other and are together no larger than the largest chunk.
struct Span {
  size_t begin, end;
};

struct Plan {
  std::vector<Chunk> chunks;
  std::vector<Span> spans;
  int64_t stride = 0;  // of a packed row

  // From a chunk to the next; from the last to the first, `wrap` bytes below.
  int64_t bytes_to_next(size_t chunk, int64_t wrap) const {
    const int64_t here = chunks[chunk].first_byte;
    return chunk + 1 < chunks.size() ? chunks[chunk + 1].first_byte - here : wrap - here;
  }
};

int64_t rounded_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// The bf16 numbers into which this many bytes are decoded. What is left after whole registers of 4-bit integers and
// fills no more than half a one makes two registers instead of four.
int64_t decoded_length(int64_t bytes, int64_t bits) {
  if (bits == 8) return rounded_up(bytes, kLanes);
  const int64_t rest = bytes % kBytes;
  return 2 * (bytes - rest + (rest == 0 ? 0 : rest <= kLanes ? kLanes : kBytes));
}

Plan make_plan(int64_t columns, int64_t groups, int64_t bits) {
  Plan plan;
  const int64_t width = columns / groups;
  int64_t in_span = kChunk;
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t start = 0; start < width; start += kChunk) {
      const int64_t first = g * width + start, count = std::min(kChunk, width - start), bytes = count * bits / 8;
      const int64_t length = decoded_length(bytes, bits);
      if (in_span + count > kChunk) {
        plan.spans.push_back({plan.chunks.size(), plan.chunks.size()});
        in_span = 0;
      }
      in_span += count;
      plan.chunks.push_back({first, count, g, first * bits / 8, bytes, plan.stride, length});
      plan.spans.back().end = plan.chunks.size();
      plan.stride += length;
    }
  }
  plan.stride += kLanes;  // rows a multiple of 4 KiB apart would share the sets of the cache
  return plan;
}

Word bf16_bits(float value) { return c10::BFloat16(value).x; }

// An activation as bf16; `part` 1 is what bf16 leaves of an fp16 number.
inline Word word_of(at::BFloat16 value, int) { return value.x; }

inline Word word_of(at::Half value, int part) {
  const float whole = value;
  return bf16_bits(part == 1 ? whole - static_cast<float>(c10::BFloat16(whole)) : whole);
}

// Columns that are read as words of `planes` nibbles each: those of all lowest nibbles, then of the next, and so on.
template <typename T>
void pack_nibbles(const T* x, int64_t columns, int64_t planes, int part, Word* out) {
  for (int64_t k = 0; k < columns; ++k) out[((k % planes) ^ 1) * kLanes + k / planes] = word_of(x[k], part);
}

// One row of activations in the order of the decoded integers.
template <typename T>
void pack_row(const T* x, Word* out, const Plan& plan, int64_t bits, int part) {
  for (const Chunk& chunk : plan.chunks) {
    const T* source = x + chunk.first;
    Word* target = out + chunk.offset;
    if (bits == 8) {
      for (int64_t k = 0; k < chunk.columns; ++k) target[k] = word_of(source[k], part);
      continue;
    }
    for (int64_t k = 0; k < chunk.columns; k += 2 * kBytes) {
      const int64_t count = chunk.columns - k;
      if (count >= 2 * kBytes) pack_nibbles(source + k, 2 * kBytes, 4, part, target + k);
      else pack_nibbles(source + k, count, count <= 2 * kLanes ? 2 : 4, part, target + k);
    }
  }
}

// The nibbles of words as bf16. The table has each value twice, because its index is five bits wide: the fifth is the
// lowest bit of the next nibble.
struct Decode4 {
  __m512i table;

  Decode4() {
    alignas(64) Word values[32];
    for (int i = 0; i < 32; ++i) values[i] = bf16_bits(static_cast<float>((i % 16) - (i % 16 > 7 ? 16 : 0)));
    table = _mm512_load_si512(values);
  }

  inline __m512i operator()(__m512i words) const { return _mm512_permutexvar_epi16(words, table); }
};

inline __m512i decode8(__m256i bytes) {
  const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
  const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

inline __mmask64 first_bytes(int64_t count) { return count >= kBytes ? ~0ull : (1ull << count) - 1; }

// Starts reading what lies `ahead` bytes on; behind the end of the weight that does nothing.
template <_mm_hint Level>
inline void ask_for(const int8_t* w, int64_t ahead) {
  _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(w) + ahead), Level);
}

// Integers as they are read: 4-bit ones as words of `Planes` nibbles, 8-bit ones in `Planes` halves of a register.
template <int Bits, int Planes>
inline __m512i load(const int8_t* bytes, __mmask64 mask) {
  if constexpr (Bits == 4 && Planes == 2) return _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(mask, bytes));
  else return _mm512_maskz_loadu_epi8(mask, bytes);
}

// The plane-th set of them as bf16; 4-bit words are shifted on to the next.
template <int Bits>
inline __m512i decode(__m512i& words, int plane, const Decode4& table) {
  if constexpr (Bits == 8) {
    return decode8(plane == 0 ? _mm512_castsi512_si256(words) : _mm512_extracti64x4_epi64(words, 1));
  } else {
    const __m512i values = table(words);
    words = _mm512_srli_epi16(words, 4);
    return values;
  }
}

inline __m512 dot(__m512 sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }

// Adds R rows of the weight times M rows of activations, at the columns of one register of bytes, to `sums`.
template <int R, int M, int Bits, int Planes>
inline void step(const int8_t* w, int64_t w_stride, __mmask64 mask, const Word* x, int64_t x_stride,
                 const Decode4& table, __m512 (&sums)[R][M]) {
  __m512i words[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) words[r] = load<Bits, Planes>(w + r * w_stride, mask);
#pragma GCC unroll 4
  for (int plane = 0; plane < Planes; ++plane) {
    __m512i values[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) values[r] = decode<Bits>(words[r], plane, table);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const __m512i other = _mm512_loadu_si512(x + m * x_stride + plane * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[r][m] = dot(sums[r][m], values[r], other);
    }
  }
}

struct Weight {
  const int8_t* data;
  const at::Half* scale;
  int64_t rows, stride, groups, bits;
};

// Results (batch, rows) in the dtype of the activations.
struct Result {
  void* data;
  int64_t rows;
  bool is_half;

  // Rounds sums (packed row, `stride` rows of the weight), of which the first `count` belong to the rows from `first`
  // on. Every thread does it for its own rows: another loop over all of them would make the threads wait once more.
  void store(const float* sums, int64_t stride, int64_t packed_row, int64_t batch, int64_t first,
             int64_t count) const {
    for (int64_t m = 0; m < batch; m += is_half ? 2 : 1) {
      const float* source = sums + m * stride;
      if (is_half) {
        at::Half* target = static_cast<at::Half*>(data) + (packed_row + m) / 2 * rows + first;
        for (int64_t r = 0; r < count; ++r) target[r] = source[r] + source[stride + r];
      } else {
        at::BFloat16* target = static_cast<at::BFloat16*>(data) + (packed_row + m) * rows + first;
        for (int64_t r = 0; r < count; ++r) target[r] = source[r];
      }
    }
  }
};

// One span of R rows of the weight with M rows of activations, decoded in registers. What will be read next, `ahead`
// bytes on, is asked for meanwhile: the processor does not see a pattern across rows by itself.
template <int R, int M, int Bits>
void direct_span(const Weight& weight, const Plan& plan, const Span& span, int64_t first, int64_t ahead, const Word* x,
                 const Decode4& decode, __m512 (*totals)[M]) {
  constexpr int Planes = Bits == 4 ? 4 : 2;
  const Decode4 table = decode;
  for (size_t c = span.begin; c < span.end; ++c) {
    const Chunk& chunk = plan.chunks[c];
    const int8_t* w = weight.data + first * weight.stride + chunk.first_byte;
    const Word* other = x + chunk.offset;
    __m512 sums[R][M];
    for (auto& row : sums) for (auto& sum : row) sum = _mm512_setzero_ps();
    int64_t k = 0;
    for (; k + kBytes <= chunk.bytes; k += kBytes) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) ask_for<_MM_HINT_T0>(w + k + r * weight.stride, ahead);
      step<R, M, Bits, Planes>(w + k, weight.stride, ~0ull, other + k * 8 / Bits, plan.stride, table, sums);
    }
    const int64_t rest = chunk.bytes - k;
    w += k;
    other += k * 8 / Bits;
    if (rest > kLanes) step<R, M, Bits, Planes>(w, weight.stride, first_bytes(rest), other, plan.stride, table, sums);
    else if (rest > 0)
      step<R, M, Bits, Planes / 2>(w, weight.stride, first_bytes(rest), other, plan.stride, table, sums);
    for (int r = 0; r < R; ++r) {
      const uint16_t bits = weight.scale[(first + r) * weight.groups + chunk.group].x;
      const __m512 scale = _mm512_cvtph_ps(_mm256_set1_epi16(bits));
      for (int m = 0; m < M; ++m) totals[r][m] = _mm512_fmadd_ps(scale, sums[r][m], totals[r][m]);
    }
  }
}

// `count` rows of the weight from `first` on with M rows of activations, R at a time.
template <int R, int M, int Bits>
void direct_rows(const Weight& weight, const Plan& plan, const Word* x, int64_t first, int64_t count,
                 const Decode4& decode, const Result& result) {
  __m512 totals[kDirectRows][M];
  for (auto& row : totals) for (auto& total : row) total = _mm512_setzero_ps();
  for (const Span& span : plan.spans) {
    const bool last = span.end == plan.chunks.size();
    const int64_t here = plan.chunks[span.begin].first_byte, next = last ? 0 : plan.chunks[span.end].first_byte;
    int64_t r = 0;
    for (; r + R <= count; r += R) {
      const bool more = r + 2 * R <= count;
      const int64_t ahead = more ? R * weight.stride : next - here + (last ? R : -r) * weight.stride;
      direct_span<R, M, Bits>(weight, plan, span, first + r, ahead, x, decode, totals + r);
    }
    for (; r < count; ++r) direct_span<1, M, Bits>(weight, plan, span, first + r, 0, x, decode, totals + r);
  }
  float sums[M][kDirectRows];
  for (int64_t r = 0; r < count; ++r)
    for (int m = 0; m < M; ++m) sums[m][r] = _mm512_reduce_add_ps(totals[r][m]);
  result.store(sums[0], kDirectRows, 0, M, first, count);
}

template <int R, int M>
void direct(const Weight& weight, const Plan& plan, const Word* x, const Result& result) {
  static_assert(kDirectRows % R == 0 && R * M <= 24, "sums stay in registers");
  const Decode4 decode;
  at::parallel_for(0, (weight.rows + kDirectRows - 1) / kDirectRows, 2, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * kDirectRows; first < std::min(end * kDirectRows, weight.rows); first += kDirectRows) {
      const int64_t count = std::min(kDirectRows, weight.rows - first);
      if (weight.bits == 4) direct_rows<R, M, 4>(weight, plan, x, first, count, decode, result);
      else direct_rows<R, M, 8>(weight, plan, x, first, count, decode, result);
    }
  });
}

void few_rows(const Weight& weight, const Plan& plan, const Word* x, int64_t batch, const Result& result) {
  switch (batch) {
    case 1: return direct<8, 1>(weight, plan, x, result);
    case 2: return direct<6, 2>(weight, plan, x, result);
    case 3: return direct<4, 3>(weight, plan, x, result);
    case 4: return direct<4, 4>(weight, plan, x, result);
    case 5: return direct<4, 5>(weight, plan, x, result);
    case 6: return direct<3, 6>(weight, plan, x, result);
    case 7: return direct<3, 7>(weight, plan, x, result);
    default: return direct<3, 8>(weight, plan, x, result);
  }
}

template <int Bits, int Planes>
inline void decode_step(const int8_t* w, __mmask64 mask, const Decode4& table, Word* out) {
  __m512i words = load<Bits, Planes>(w, mask);
#pragma GCC unroll 4
  for (int plane = 0; plane < Planes; ++plane)
    _mm512_store_si512(out + plane * kLanes, decode<Bits>(words, plane, table));
}

// Decodes `rows` rows of one chunk into a buffer of rows `stride` apart, and asks for what is `ahead` bytes on.
template <int Bits>
void decode_chunk(const Weight& weight, const Chunk& chunk, int64_t first, int64_t rows, int64_t ahead,
                  const Decode4& decode, Word* buffer, int64_t stride) {
  constexpr int Planes = Bits == 4 ? 4 : 2;
  const Decode4 table = decode;
  const int64_t whole = chunk.bytes / kBytes * kBytes, rest = chunk.bytes - whole;
  for (int64_t r = 0; r < rows; ++r) {
    const int8_t* w = weight.data + (first + r) * weight.stride + chunk.first_byte;
    Word* out = buffer + r * stride;
#pragma GCC unroll 2
    for (int64_t k = 0; k < whole; k += kBytes) {
      ask_for<_MM_HINT_T1>(w + k, ahead);
      decode_step<Bits, Planes>(w + k, ~0ull, table, out + k * 8 / Bits);
    }
    if (rest > kLanes) decode_step<Bits, Planes>(w + whole, first_bytes(rest), table, out + whole * 8 / Bits);
    else if (rest > 0) decode_step<Bits, Planes / 2>(w + whole, first_bytes(rest), table, out + whole * 8 / Bits);
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

// `batch` packed rows of activations from `packed_row` on, with blocks of the weight that are decoded first.
void buffered(const Weight& weight, const Plan& plan, const Word* x, int64_t packed_row, int64_t batch,
              const Result& result) {
  x += packed_row * plan.stride;
  const Decode4 decode;
  const int64_t blocks = (weight.rows + kBlockRows - 1) / kBlockRows;
  constexpr int64_t stride = kChunk + kLanes;
  at::parallel_for(0, blocks, 4, [&](int64_t begin, int64_t end) {
    alignas(64) Word buffer[kBlockRows * stride] = {};
    std::vector<float> sums(batch * kBlockRows);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlockRows, rows = std::min(kBlockRows, weight.rows - first);
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (size_t c = 0; c < plan.chunks.size(); ++c) {
        const Chunk& chunk = plan.chunks[c];
        const int64_t ahead = plan.bytes_to_next(c, kBlockRows * weight.stride);
        float scale[kBlockRows] = {};
        for (int64_t r = 0; r < rows; ++r) scale[r] = weight.scale[(first + r) * weight.groups + chunk.group];
        if (weight.bits == 4) decode_chunk<4>(weight, chunk, first, rows, ahead, decode, buffer, stride);
        else decode_chunk<8>(weight, chunk, first, rows, ahead, decode, buffer, stride);
        multiply_chunk(buffer, stride, x + chunk.offset, plan.stride, chunk.length, batch, _mm256_loadu_ps(scale),
                       sums.data());
      }
      result.store(sums.data(), kBlockRows, packed_row, batch, first, rows);
    }
  });
}

template <typename T>
std::vector<Word> pack(const at::Tensor& x, const Plan& plan, int64_t bits, int parts) {
  const int64_t batch = x.size(0), columns = x.size(1);
  std::vector<Word> packed(batch * parts * plan.stride);
  const T* data = x.const_data_ptr<T>();
  at::parallel_for(0, batch * parts, kFewRows, [&](int64_t begin, int64_t end) {
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
  at::Tensor result = at::empty({batch, rows}, x.options());
  const Result out{result.data_ptr(), rows, is_half};
  const int64_t packed_rows = batch * parts;
  if (packed_rows > 0 && packed_rows <= kFewRows) few_rows(stored, plan, packed.data(), packed_rows, out);
  for (int64_t m = 0; packed_rows > kFewRows && m < packed_rows; m += kBatch)
    buffered(stored, plan, packed.data(), m, std::min(kBatch, packed_rows - m), out);
  return result;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(weight_only_int_cpu, library) {
  library.def("linear(Tensor x, Tensor weight, Tensor scale, int bits) -> Tensor");
  library.impl("linear", c10::DispatchKey::CPU, linear);
}
