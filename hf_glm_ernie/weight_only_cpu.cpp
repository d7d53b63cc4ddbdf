// Products of floating-point activations with 4- or 8-bit integers as they are stored, for CPUs with AVX-512 BF16.
//
// bf16 and fp16: integers of both widths are exact in bf16, so a product runs on the processor's bf16 dot products with
// fp32 sums and the fp16 scale multiplies the sum of each group of columns: nothing is rounded but the result. An fp16
// activation is the exact sum of two bf16 numbers and is treated as two rows. fp32: the values are rounded to fp16, as
// the format defines them, and multiplied in fp32.
//
// Few rows of activations: integers are decoded in registers and used at once; reading the weight is what takes time,
// so rows to come are asked for in advance. More rows: a block of the weight is decoded into a buffer that stays in
// the cache, and every row multiplies it. Activations are brought into the order of the decoded integers first: a
// register of 4-bit integers is read as words of nibbles: each word's lowest, then each one's second, and so on. Where
// groups are many and narrow, each lane of a register holds a group of its own: then one multiplication scales sixteen.
//
// Nothing of torch is included: that would be most of the time of the compiler, and would tie the library to a version.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace {

constexpr int64_t kLanes = 32;       // bf16 numbers in a register
constexpr int64_t kBytes = 64;       // bytes in a register, and in a line of the cache
constexpr int64_t kChunk = 2048;     // columns of bf16 activations that stay in the nearest cache
constexpr int64_t kWideChunk = 1024;  // of fp32 ones
constexpr int64_t kDirectRows = 24;  // rows of the weight that use them before the next columns; what R below divides
constexpr int64_t kFewRows = 8;      // rows of activations up to which nothing is buffered
constexpr int64_t kBlockRows = 4;    // rows of the weight in a decoded block, 16 KiB of a chunk
constexpr int64_t kTileRows = 6;     // rows of activations whose sums with a block stay in registers
constexpr int64_t kBatch = 96;       // rows of activations of which a chunk stays in the cache, 384 KiB

using Word = uint16_t;  // the bits of a bf16 number
struct BFloat { Word x; };
struct Half { uint16_t x; };

inline float value_of(Half half) { return _cvtsh_ss(half.x); }
inline float value_of(BFloat number) { return std::bit_cast<float>(static_cast<uint32_t>(number.x) << 16); }

// The nearest, of two as near the even one.
inline Word bf16_bits(float value) {
  if (value != value) return 0x7fc0;
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline void round_to(BFloat& target, float value) { target.x = bf16_bits(value); }
inline void round_to(Half& target, float value) { target.x = _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
inline void round_to(float& target, float value) { target = value; }

// Calls f(begin, end) for parts of `count` things, no more of them than there are `grain` things in one.
template <typename F>
void in_parallel(int64_t count, int64_t grain, int64_t threads, const F& f) {
  threads = std::min(threads, (count + grain - 1) / grain);
  if (threads <= 1) return f(0, count);
#pragma omp parallel num_threads(threads)
  {
    const int64_t parts = omp_get_num_threads(), part = omp_get_thread_num();  // a runtime may give fewer
    f(count * part / parts, count * (part + 1) / parts);
  }
}

// A chunk of columns inside one group: its bytes in a row of the weight, its activations' place in a packed row. In a
// plan of lanes the same columns of the groups from this one on.
struct Chunk {
  int64_t first, columns, group, first_byte, bytes, offset, length;
};

// Chunks that lie beside each other and are together no longer than the largest chunk.
struct Span {
  size_t begin, end;
  int64_t offset, length;
};

struct Plan {
  std::vector<Chunk> chunks;
  std::vector<Span> spans;
  int64_t stride = 0;  // of a packed row
  int64_t groups, width, bits;
  bool lanes = false;  // sixteen groups side by side

  // From a span to the next; from the last to the first, `wrap` bytes below.
  int64_t bytes_to_next(size_t span, int64_t wrap) const {
    const int64_t here = chunks[spans[span].begin].first_byte;
    return span + 1 < spans.size() ? chunks[spans[span + 1].begin].first_byte - here : wrap - here;
  }
};

int64_t rounded_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// Nibbles in the words as which this many bytes are read, for lanes of 16 bits (bf16) or 32 (fp32): bytes that fill
// only a half or a quarter of a register are spread over all of its lanes.
inline int64_t planes_of(int64_t bytes, bool wide) {
  if (wide) return bytes > 32 ? 8 : bytes > 16 ? 4 : 2;
  return bytes > 32 ? 4 : 2;
}

// The numbers into which this many bytes are decoded.
int64_t decoded_length(int64_t bytes, int64_t bits, bool wide) {
  if (bits == 8) return rounded_up(bytes, kLanes);
  const int64_t rest = bytes % kBytes, lanes = wide ? kLanes / 2 : kLanes;
  return 2 * (bytes - rest) + (rest == 0 ? 0 : lanes * planes_of(rest, wide));
}

constexpr int64_t kSide = 16;  // groups side by side, one in each lane of 32 bits

// Whether sixteen groups side by side take less: lanes without a group are lost, but else each chunk costs the time of
// some 120 columns for the sums of its lanes.
bool lanes_pay(int64_t columns, int64_t groups, int64_t bits) {
  const int64_t width = columns / groups;
  return groups > 1 && width * bits % 32 == 0 && (rounded_up(groups, kSide) - groups) * width <= 120 * groups;
}

// Few rows of activations take spans as long as may be, bf16 ones of many rows one for each scale.
Plan make_plan(int64_t columns, int64_t groups, int64_t bits, bool wide, bool few) {
  Plan plan;
  const int64_t width = columns / groups, most = wide ? kWideChunk : kChunk;
  plan.groups = groups, plan.width = width, plan.bits = bits;
  plan.lanes = !wide && !few && lanes_pay(columns, groups, bits);
  const int64_t side = plan.lanes ? kSide : 1, step = most / side;
  for (int64_t g = 0; g < groups; g += side) {
    for (int64_t start = 0; start < width; start += step) {
      const int64_t first = g * width + start, count = std::min(step, width - start), bytes = count * bits / 8;
      const int64_t length = plan.lanes ? count * side : decoded_length(bytes, bits, wide);
      const bool joined = (wide || few) && !plan.spans.empty() && plan.spans.back().length + length <= most;
      if (!joined) plan.spans.push_back({plan.chunks.size(), plan.chunks.size(), plan.stride, 0});
      plan.chunks.push_back({first, count, g, first * bits / 8, bytes, plan.stride, length});
      plan.spans.back().end = plan.chunks.size();
      plan.spans.back().length += length;
      plan.stride += length;
    }
  }
  plan.stride += kLanes;  // rows a multiple of 4 KiB apart would share the sets of the cache
  return plan;
}

// An activation as it is multiplied; `part` 1 is what bf16 leaves of an fp16 number.
inline Word packed_of(BFloat value, int) { return value.x; }
inline float packed_of(float value, int) { return value; }

inline Word packed_of(Half value, int part) {
  const float whole = value_of(value);
  return bf16_bits(part == 1 ? whole - value_of(BFloat{bf16_bits(whole)}) : whole);
}

// Columns that are read as words of Planes nibbles each: those of all lowest nibbles, then of the next, and so on.
template <int Planes, typename T, typename P>
void pack_nibbles(const T* x, int64_t columns, int part, P* out) {
  constexpr int64_t Lanes = kBytes / sizeof(P);
  for (int64_t k = 0; k < columns; k += Planes)
    for (int64_t plane = 0; plane < std::min<int64_t>(Planes, columns - k); ++plane)
      out[(plane ^ 1) * Lanes + k / Planes] = packed_of(x[k + plane], part);
}

// Columns of sixteen groups side by side: a lane holds two columns of its group, in the order of their nibbles or bytes.
template <typename T>
void pack_lanes(const T* x, const Plan& plan, const Chunk& chunk, int part, Word* out) {
  const int64_t planes = 16 / plan.bits, in_word = 2 * planes, side = std::min(kSide, plan.groups - chunk.group);
  const int64_t flip = plan.bits == 4;
  for (int64_t lane = 0; lane < side; ++lane, x += plan.width)
    for (int64_t word = 0; word < chunk.columns / in_word; ++word)
      for (int64_t i = 0; i < in_word; ++i)
        out[(word * planes + i % planes) * kLanes + 2 * lane + i / planes] =
            packed_of(x[word * in_word + (i ^ flip)], part);
}

// One row of activations in the order of the decoded integers.
template <typename T, typename P>
void pack_row(const T* x, P* out, const Plan& plan, int part) {
  constexpr bool Wide = sizeof(P) == 4;
  for (const Chunk& chunk : plan.chunks) {
    const T* source = x + chunk.first;
    P* target = out + chunk.offset;
    if constexpr (!Wide) {
      if (plan.lanes) {
        pack_lanes(source, plan, chunk, part, target);
        continue;
      }
    }
    if (plan.bits == 8) {
      for (int64_t k = 0; k < chunk.columns; ++k) target[k] = packed_of(source[k], part);
      continue;
    }
    for (int64_t k = 0; k < chunk.columns; k += 2 * kBytes) {
      const int64_t count = std::min(chunk.columns - k, 2 * kBytes), planes = planes_of(count / 2, Wide);
      if (Wide && planes == 8) pack_nibbles<8>(source + k, count, part, target + k);
      else if (planes == 4) pack_nibbles<4>(source + k, count, part, target + k);
      else pack_nibbles<2>(source + k, count, part, target + k);
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
  const Half* scale;
  int64_t rows, stride, groups, bits;
};

// Results (batch, rows) in the dtype of the activations.
struct Result {
  void* data;
  int64_t rows;
  int64_t threads;
  enum Type { kBFloat, kHalf, kFloat } type;

  // Rounds sums (packed row, `stride` rows of the weight), of which the first `count` belong to the rows from `first`
  // on. Every thread does it for its own rows: another loop over all of them would make the threads wait once more.
  void store(const float* sums, int64_t stride, int64_t packed_row, int64_t batch, int64_t first,
             int64_t count) const {
    if (type == kBFloat) store_as<BFloat, 1>(sums, stride, packed_row, batch, first, count);
    else if (type == kHalf) store_as<Half, 2>(sums, stride, packed_row, batch, first, count);
    else store_as<float, 1>(sums, stride, packed_row, batch, first, count);
  }

  template <typename T, int Parts>
  void store_as(const float* sums, int64_t stride, int64_t packed_row, int64_t batch, int64_t first,
                int64_t count) const {
    for (int64_t m = 0; m < batch; m += Parts) {
      const float* source = sums + m * stride;
      T* target = static_cast<T*>(data) + (packed_row + m) / Parts * rows + first;
      for (int64_t r = 0; r < count; ++r) round_to(target[r], Parts == 2 ? source[r] + source[stride + r] : source[r]);
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
  in_parallel(rounded_up(weight.rows, kDirectRows) / kDirectRows, 2, result.threads, [&](int64_t begin, int64_t end) {
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

// Decodes one chunk of a row to bf16 integers, and asks for what is `ahead` bytes on.
template <int Bits>
void decode_chunk(const int8_t* w, int64_t bytes, int64_t ahead, Half, const Decode4& decode, Word* out) {
  constexpr int Planes = Bits == 4 ? 4 : 2;
  const Decode4 table = decode;
  const int64_t whole = bytes / kBytes * kBytes, rest = bytes - whole;
#pragma GCC unroll 2
  for (int64_t k = 0; k < whole; k += kBytes) {
    ask_for<_MM_HINT_T1>(w + k, ahead);
    decode_step<Bits, Planes>(w + k, ~0ull, table, out + k * 8 / Bits);
  }
  if (rest > kLanes) decode_step<Bits, Planes>(w + whole, first_bytes(rest), table, out + whole * 8 / Bits);
  else if (rest > 0) decode_step<Bits, Planes / 2>(w + whole, first_bytes(rest), table, out + whole * 8 / Bits);
}

inline __m512 rounded_to_half(__m512 values) {
  return _mm512_cvtph_ps(_mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// The nibbles of words as fp32 values: the index of the table is the lowest four bits of a lane.
template <int Planes>
inline void decode_wide_step(__m512i words, __m512 table, float* out) {
#pragma GCC unroll 8
  for (int plane = 0; plane < Planes; ++plane) {
    _mm512_store_ps(out + plane * kLanes / 2, _mm512_permutexvar_ps(words, table));
    words = _mm512_srli_epi32(words, 4);
  }
}

// Decodes one chunk of a row to fp32 values, rounded to fp16 as the format defines them.
template <int Bits>
void decode_chunk(const int8_t* w, int64_t bytes, int64_t ahead, Half scale, const Decode4&, float* out) {
  const __m512 factor = _mm512_set1_ps(value_of(scale));
  if constexpr (Bits == 8) {
    for (int64_t k = 0; k < bytes; k += 16) {
      if (k % kBytes == 0) ask_for<_MM_HINT_T1>(w + k, ahead);
      const __mmask16 mask = bytes - k >= 16 ? 0xffff : (1u << (bytes - k)) - 1;
      const __m512 q = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, w + k)));
      _mm512_store_ps(out + k, rounded_to_half(_mm512_mul_ps(q, factor)));
    }
  } else {
    const __m512 integers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    const __m512 table = rounded_to_half(_mm512_mul_ps(integers, factor));
    for (int64_t k = 0; k < bytes; k += kBytes) {
      ask_for<_MM_HINT_T1>(w + k, ahead);
      const int64_t rest = bytes - k;
      const __m512i words = _mm512_maskz_loadu_epi8(first_bytes(rest), w + k);
      if (rest > 32) decode_wide_step<8>(words, table, out + 2 * k);
      else if (rest > 16) decode_wide_step<4>(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(words)), table, out + 2 * k);
      else decode_wide_step<2>(_mm512_cvtepu8_epi32(_mm512_castsi512_si128(words)), table, out + 2 * k);
    }
  }
}

// Sixteen registers of sixteen words, exchanged along the diagonal.
inline void transpose(__m512i (&a)[16]) {
  __m512i b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i even = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88), odd = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
    const __m512i other_even = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
    const __m512i other_odd = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    b[i] = _mm512_shuffle_i32x4(even, other_even, 0x88);
    b[i + 8] = _mm512_shuffle_i32x4(even, other_even, 0xdd);
    b[i + 4] = _mm512_shuffle_i32x4(odd, other_odd, 0x88);
    b[i + 12] = _mm512_shuffle_i32x4(odd, other_odd, 0xdd);
  }
  std::copy(b, b + 16, a);
}

// The bf16 numbers of two bytes of each word, which `Low` and `High` bits to the left are its highest.
template <int Low, int High>
inline __m512i decode_bytes(__m512i words) {
  const __m512 low = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(words, Low), 24));
  const __m512 high = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(words, High), 24));
  return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(_mm512_castps_si512(low), 16),
                                 _mm512_castps_si512(high));
}

// Decodes one chunk of sixteen groups, of which `side` exist, `apart` bytes apart.
template <int Bits>
void decode_lanes(const int8_t* w, int64_t bytes, int64_t side, int64_t apart, int64_t ahead, const Decode4& decode4,
                  Word* out) {
  const Decode4 table = decode4;
  for (int64_t k = 0; k < bytes; k += kBytes) {
    __m512i words[16];
    for (int64_t lane = 0; lane < kSide; ++lane) {
      const int8_t* mine = w + k + lane * apart;
      words[lane] = lane < side ? _mm512_maskz_loadu_epi8(first_bytes(bytes - k), mine) : _mm512_setzero_si512();
      if (lane < side) ask_for<_MM_HINT_T1>(mine, ahead);
    }
    transpose(words);
    for (int64_t i = 0; i < std::min<int64_t>(16, (bytes - k) / 4); ++i) {
      if constexpr (Bits == 4) {
        for (int plane = 0; plane < 4; ++plane, out += kLanes) _mm512_store_si512(out, decode<4>(words[i], plane, table));
      } else {
        _mm512_store_si512(out, decode_bytes<24, 8>(words[i]));
        _mm512_store_si512(out + kLanes, decode_bytes<16, 0>(words[i]));
        out += 2 * kLanes;
      }
    }
  }
}

// The eight sums of the lanes of eight registers.
inline __m256 sums_of(const __m512* a) {
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

// Adds the sums of the lanes, scaled, to results (M, kBlockRows).
template <int M>
inline void add_sums(const __m512 (&sums)[M * kBlockRows], __m256 scale, float* result) {
#pragma GCC unroll 4
  for (int i = 0; i + 8 <= M * kBlockRows; i += 8)
    _mm256_storeu_ps(result + i, _mm256_fmadd_ps(scale, sums_of(sums + i), _mm256_loadu_ps(result + i)));
  if constexpr (M % 2 == 1) {
    constexpr int i = (M - 1) * kBlockRows;
    const __m512 zero = _mm512_setzero_ps();
    const __m512 last[8] = {sums[i], sums[i + 1], sums[i + 2], sums[i + 3], zero, zero, zero, zero};
    const __m128 added = _mm_fmadd_ps(_mm256_castps256_ps128(scale), _mm256_castps256_ps128(sums_of(last)),
                                      _mm_loadu_ps(result + i));
    _mm_storeu_ps(result + i, added);
  }
}

inline __m512i load_packed(const Word* x) { return _mm512_loadu_si512(x); }
inline __m512 load_packed(const float* x) { return _mm512_loadu_ps(x); }
inline __m512 dot(__m512 sum, __m512 a, __m512 b) { return _mm512_fmadd_ps(a, b, sum); }

// Adds the rows of the buffer times M rows of activations to `sums`.
template <int M, typename P>
inline void tile_sums(const P* w, int64_t w_stride, const P* x, int64_t x_stride, int64_t length,
                      __m512 (&sums)[M * kBlockRows]) {
  for (int64_t k = 0; k < length; k += kBytes / sizeof(P)) {
    decltype(load_packed(x)) values[kBlockRows];
#pragma GCC unroll 4
    for (int r = 0; r < kBlockRows; ++r) values[r] = load_packed(w + r * w_stride + k);
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      const auto other = load_packed(x + m * x_stride + k);
#pragma GCC unroll 4
      for (int r = 0; r < kBlockRows; ++r) sums[m * kBlockRows + r] = dot(sums[m * kBlockRows + r], values[r], other);
    }
  }
}

// A decoded span of kBlockRows rows, `stride` apart, and their scales: of a row, or of each lane.
template <typename P>
struct Decoded {
  P* values;
  int64_t stride, length;
  __m512 lane_scales[kBlockRows];
  float scales[2 * kBlockRows];  // twice the rows
  bool lanes;
};

// A span times M rows of activations, added to the results of the block.
template <int M, typename P>
inline void tile(const Decoded<P>& w, const P* x, int64_t x_stride, float* result) {
  __m512 sums[M * kBlockRows];
#pragma GCC unroll 24
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  tile_sums<M>(w.values, w.stride, x, x_stride, w.length, sums);
  if (w.lanes) {
#pragma GCC unroll 24
    for (int i = 0; i < M * kBlockRows; ++i) sums[i] = _mm512_mul_ps(sums[i], w.lane_scales[i % kBlockRows]);
  }
  add_sums<M>(sums, _mm256_loadu_ps(w.scales), result);
}

// Tiles of M rows of activations, then of fewer.
template <int M, typename P>
void multiply_span(const Decoded<P>& w, const P* x, int64_t x_stride, int64_t batch, float* result) {
  if constexpr (M > 0) {
    int64_t m = 0;
    for (; m + M <= batch; m += M) tile<M>(w, x + m * x_stride, x_stride, result + m * kBlockRows);
    multiply_span<M - 1>(w, x + m * x_stride, x_stride, batch - m, result + m * kBlockRows);
  }
}

// Decodes the chunk of a row, and notes its scale or scales.
template <typename P>
void decode_row(const Weight& weight, const Plan& plan, const Chunk& chunk, int64_t row, int64_t r, int64_t ahead,
                const Decode4& decode, P* out, Decoded<P>& decoded) {
  const int8_t* w = weight.data + row * weight.stride + chunk.first_byte;
  const Half* scale = weight.scale + row * weight.groups + chunk.group;
  const bool one = sizeof(P) == 2 && !plan.lanes;  // else the scale is in the values, or in lanes
  decoded.scales[r] = decoded.scales[r + kBlockRows] = one ? value_of(*scale) : 1.0f;
  if constexpr (sizeof(P) == 2) {
    if (plan.lanes) {
      const int64_t side = std::min(kSide, plan.groups - chunk.group), apart = plan.width * weight.bits / 8;
      decoded.lane_scales[r] = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((1u << side) - 1, scale));
      if (weight.bits == 4) return decode_lanes<4>(w, chunk.bytes, side, apart, ahead, decode, out);
      return decode_lanes<8>(w, chunk.bytes, side, apart, ahead, decode, out);
    }
  }
  if (weight.bits == 4) decode_chunk<4>(w, chunk.bytes, ahead, *scale, decode, out);
  else decode_chunk<8>(w, chunk.bytes, ahead, *scale, decode, out);
}

// `batch` packed rows of activations from `packed_row` on, with blocks of the weight that are decoded first.
template <typename P>
void buffered(const Weight& weight, const Plan& plan, const P* x, int64_t packed_row, int64_t batch,
              const Result& result) {
  x += packed_row * plan.stride;
  const Decode4 decode;
  in_parallel(rounded_up(weight.rows, kBlockRows) / kBlockRows, 8, result.threads, [&](int64_t begin, int64_t end) {
    constexpr int64_t stride = (sizeof(P) == 4 ? kWideChunk : kChunk) + kLanes;
    alignas(64) P buffer[kBlockRows * stride] = {};
    float sums[kBatch * kBlockRows];
    Decoded<P> decoded = {buffer, stride, 0, {}, {}, plan.lanes};
    for (int64_t first = begin * kBlockRows; first < std::min(end * kBlockRows, weight.rows); first += kBlockRows) {
      const int64_t rows = std::min(kBlockRows, weight.rows - first);
      std::fill(sums, sums + batch * kBlockRows, 0.0f);
      for (size_t s = 0; s < plan.spans.size(); ++s) {
        const Span& span = plan.spans[s];
        const int64_t ahead = plan.bytes_to_next(s, kBlockRows * weight.stride);
        decoded.length = span.length;
        for (size_t c = span.begin; c < span.end; ++c)
          for (int64_t r = 0; r < rows; ++r)
            decode_row(weight, plan, plan.chunks[c], first + r, r, ahead, decode,
                       buffer + r * stride + plan.chunks[c].offset - span.offset, decoded);
        multiply_span<kTileRows>(decoded, x + span.offset, plan.stride, batch, sums);
      }
      result.store(sums, kBlockRows, packed_row, batch, first, rows);
    }
  });
}

template <int Parts, typename T, typename P>
void multiply(const T* x, int64_t batch, int64_t columns, const Weight& weight, const Result& result, P) {
  const int64_t packed_rows = batch * Parts;
  const bool few = sizeof(P) == 2 && packed_rows <= kFewRows;
  const Plan plan = make_plan(columns, weight.groups, weight.bits, sizeof(P) == 4, few);
  std::vector<P> packed(packed_rows * plan.stride);
  in_parallel(packed_rows, kFewRows, result.threads, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      pack_row(x + row / Parts * columns, packed.data() + row * plan.stride, plan, row % Parts);
  });
  if constexpr (sizeof(P) == 2) {
    if (few) return few_rows(weight, plan, packed.data(), packed_rows, result);
  }
  for (int64_t m = 0; m < packed_rows; m += kBatch)
    buffered<P>(weight, plan, packed.data(), m, std::min(kBatch, packed_rows - m), result);
}

}  // namespace

// x (batch, columns) of `type` (0 bf16, 1 fp16, 2 fp32), weight as stored, scale (rows, groups) fp16 -> y (batch, rows)
// of the same type; all contiguous, nothing empty. Returns 0, or 1 where there is no memory.
extern "C" int weight_only_linear(const void* x, const int8_t* weight, const void* scale, void* y, int64_t batch,
                                  int64_t columns, int64_t rows, int64_t groups, int64_t bits, int64_t type,
                                  int64_t threads) {
  const Weight stored{weight, static_cast<const Half*>(scale), rows, columns * bits / 8, groups, bits};
  const Result result{y, rows, threads, static_cast<Result::Type>(type)};
  try {
    if (type == Result::kBFloat) multiply<1>(static_cast<const BFloat*>(x), batch, columns, stored, result, Word());
    else if (type == Result::kHalf) multiply<2>(static_cast<const Half*>(x), batch, columns, stored, result, Word());
    else multiply<1>(static_cast<const float*>(x), batch, columns, stored, result, float());
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
