// Affine coupling: y and log-determinant in one pass over x, and the gradient, which recomputes.
//
// The active elements of a row, A * S of them, are *dense* in scale and shift.  Where they come in runs
// in x as well, the kernel works on x and y in place; other patterns (every other feature, any order,
// fewer than a vector holds) are packed into a buffer, several rows at a time where rows are short.
#include "coupling.h"

#include "coupling_dense.h"
#include "kernels.h"

namespace EVIDENS_NAMESPACE {
namespace {

constexpr int64_t kChunk = 1024;                  // elements of a buffer, but for the last chunk of a run: twice that
constexpr int64_t kUnit = 1 << 15;                // elements of x that a unit aims at
constexpr int64_t kLongRow = 1 << 17;             // elements from which a row is cut into parts
constexpr int64_t kPastCache = int64_t(8) << 20;  // bytes of a result from which it is written past the cache
constexpr int kBuffers = 8;

enum Kind : int64_t { kRuns, kAlternating, kScattered };

struct Run {
  int64_t begin;  // in the row of x, in elements
  int64_t dense;  // in the row of scale and shift; -1: passive, copied
  int64_t count;  // elements
};

struct Layout {
  int64_t kind;      // Kind
  int64_t runs;      // entries of `run`, for kRuns
  int64_t elements;  // A * S
  int64_t first;     // kAlternating: the first active feature
  Run *run;
  uint32_t *index;  // kScattered: the element of the row of x of each dense element
  double *sums;     // (N, parts), where rows are cut
};

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// --- moving elements -----------------------------------------------------------------------------

template <class T> EVIDENS_INLINE void copy(int64_t n, const T *from, T *to, bool past_cache = false) {
  constexpr int W = width<T>;
  int64_t i = 0;
  past_cache = past_cache && on_a_vector(to);
  for (; i + W <= n; i += W) put(to + i, load(from + i), past_cache);
  if (i == n) return;
  if (n >= W) store(to + n - W, load(from + n - W));
  else
    for (; i < n; ++i) to[i] = from[i];
}
template <class T> EVIDENS_INLINE void clear(int64_t n, T *to) {
  for (int64_t i = 0; i < n; ++i) to[i] = T(0);
}

template <class T, int Odd, int... I> EVIDENS_INLINE Vec<T> every_second_(Vec<T> a, Vec<T> b, Indices<I...>) {
  return __builtin_shufflevector(a, b, (2 * I + Odd)...);
}
template <class T, int... I> EVIDENS_INLINE Vec<T> twice_low_(Vec<T> a, Indices<I...>) {
  return __builtin_shufflevector(a, a, (I / 2)...);
}
template <class T, int... I> EVIDENS_INLINE Vec<T> twice_high_(Vec<T> a, Indices<I...>) {
  return __builtin_shufflevector(a, a, (I / 2 + width<T> / 2)...);
}

// Words, because integer registers load and store more of them in a cycle; gathering instructions are
// slower still where there are any.
template <class T> struct WordOf { typedef Int<T> type __attribute__((may_alias)); };
template <class T> void gather(const T *from, const uint32_t *index, int64_t n, T *to) {
  typedef typename WordOf<T>::type Word;
  const Word *in = reinterpret_cast<const Word *>(from);
  Word *out = reinterpret_cast<Word *>(to);
#pragma GCC unroll 8
  for (int64_t i = 0; i < n; ++i) {
    Word w = in[index[i]];
    asm("" : "+r"(w));
    out[i] = w;
  }
}
template <class T> void scatter(const T *from, const uint32_t *index, int64_t n, T *to) {
  typedef typename WordOf<T>::type Word;
  const Word *in = reinterpret_cast<const Word *>(from);
  Word *out = reinterpret_cast<Word *>(to);
#pragma GCC unroll 8
  for (int64_t i = 0; i < n; ++i) {
    Word w = in[i];
    asm("" : "+r"(w));
    out[index[i]] = w;
  }
}

// Every second element of n pairs, of which `left` elements exist.
template <class T, int Odd> void take_second(const T *from, int64_t left, int64_t n, T *to) {
  constexpr int W = width<T>;
  int64_t i = 0;
  for (; i + W <= n && 2 * (i + W) <= left; i += W) {
    const Vec<T> low = load(from + 2 * i), high = load(from + 2 * i + W);
    store(to + i, every_second_<T, Odd>(low, high, typename MakeIndices<W>::type()));
  }
  for (; i < n; ++i) to[i] = from[2 * i + Odd];
}
// And back, beside what `in` holds there (null: zero).
template <class T, int Odd>
void give_second(const T *from, const T *in, int64_t left, int64_t n, T *to, bool past_cache) {
  constexpr int W = width<T>;
  typedef typename MakeIndices<W>::type Lanes;
  const Vec<Int<T>> active = (lane_numbers<T>() & 1) == Odd;
  past_cache = past_cache && on_a_vector(to);
  int64_t i = 0;
  for (; i + W <= n && 2 * (i + W) <= left; i += W) {
    const Vec<T> v = load(from + i), low = load_or_zero(in, 2 * i), high = load_or_zero(in, 2 * i + W);
    put(to + 2 * i, active ? twice_low_<T>(v, Lanes()) : low, past_cache);
    put(to + 2 * i + W, active ? twice_high_<T>(v, Lanes()) : high, past_cache);
  }
  for (; i < n; ++i) {
    const int64_t other = 2 * i + 1 - Odd;
    to[2 * i + Odd] = from[i];
    if (other < left) to[other] = in == nullptr ? T(0) : in[other];
  }
}

// Dense elements [e, e + n) of one row of x into `to`.
template <class T> void pack(const Layout &s, const CouplingParams &p, const T *row, int64_t e, int64_t n, T *to) {
  const int64_t begin = s.first / 2 * 2 + 2 * e, left = p.features - begin;
  if (s.kind == kScattered) gather<T>(row, s.index + e, n, to);
  else if (s.first % 2 == 0) take_second<T, 0>(row + begin, left, n, to);
  else take_second<T, 1>(row + begin, left, n, to);
}
// And back into a row; between alternating elements stands what `in` holds there (null: zero), around
// scattered ones what the row itself holds.
template <class T>
void unpack(const Layout &s, const CouplingParams &p, const T *from, int64_t e, int64_t n, const T *in, T *row,
            bool past_cache) {
  const int64_t begin = s.first / 2 * 2 + 2 * e, left = p.features - begin;
  if (s.kind == kScattered) scatter<T>(from, s.index + e, n, row);
  else if (s.first % 2 == 0) give_second<T, 0>(from, past<T>(in, begin), left, n, row + begin, past_cache);
  else give_second<T, 1>(from, past<T>(in, begin), left, n, row + begin, past_cache);
}

// Dense elements [e, e + n) of a row of scale or shift: where they lie, or gathered into `buffer`.
template <class T> const T *span(const T *row, int64_t channel, int64_t places, int64_t e, int64_t n, T *buffer) {
  if (row == nullptr || channel == places) return past<T>(row, e);
  if (places == 1) {
    for (int64_t i = 0; i < n; ++i) buffer[i] = row[(e + i) * channel];
    return buffer;
  }
  for (int64_t i = 0; i < n;) {
    const int64_t c = (e + i) / places, place = (e + i) % places;
    const int64_t count = n - i < places - place ? n - i : places - place;
    copy(count, row + c * channel + place, buffer + i);
    i += count;
  }
  return buffer;
}

// --- rows ----------------------------------------------------------------------------------------

template <class T> struct Call {
  const CouplingParams &p;
  const Layout &s;
  MapConstants<T> k;
  DenseFunction<T> run;
  bool backward;
  T *buffer;     // kBuffers of 2 * kChunk elements
  int64_t size;  // of a row of x
  bool past_cache;

  T *scratch(int i) const { return buffer + i * 2 * kChunk; }
  const T *x(int64_t row) const { return static_cast<const T *>(p.x) + row * p.x_row; }
  const T *gy(int64_t row) const { return past<T>(static_cast<const T *>(p.grad_y), row * p.grad_y_row); }
  const T *scale(int64_t row) const { return past<T>(static_cast<const T *>(p.scale), row * p.scale_row); }
  const T *shift(int64_t row) const { return past<T>(static_cast<const T *>(p.shift), row * p.shift_row); }
  T gl(int64_t row) const {
    return p.grad_logdet == nullptr ? T(0) : static_cast<const T *>(p.grad_logdet)[row * p.grad_logdet_row];
  }
  // The row that is written, and the one that a passive element is copied from (null: zero).
  T *out(int64_t row) const { return past<T>(static_cast<T *>(backward ? p.grad_x : p.y), row * size); }
  const T *in(int64_t row) const { return backward ? gy(row) : x(row); }
  void passive(int64_t row, int64_t begin, int64_t n) const {
    T *to = out(row);
    const T *from = in(row);
    if (to == nullptr) return;
    if (from == nullptr) clear(n, to + begin);
    else copy(n, from + begin, to + begin, past_cache);
  }
  // Views of one conditioner output are copied first, one after the other: the memory then sees one
  // stream instead of two that take turns, which is a third faster.
  const T *staged(const T *from, int64_t stride, int64_t channel, int64_t e, int64_t n, T *to) const {
    const T *found = span<T>(from, channel, p.places, e, n, to);
    if (found == nullptr || found == to || stride == s.elements) return found;
    copy(n, found, to);
    return to;
  }
  // What `unpack` leaves out.
  void around(int64_t row) const {
    const int64_t begin = s.first / 2 * 2, end = begin + 2 * s.elements;
    passive(row, 0, s.kind == kAlternating ? begin : size);
    if (s.kind == kAlternating && end < size) passive(row, end, size - end);
  }
  // Dense elements from e of a row on, but for x, grad_y and what belongs to them.
  Dense<T> dense(int64_t row, int64_t e, int64_t n) const {
    Dense<T> d = {};
    d.r = staged(scale(row), p.scale_row, p.scale_channel, e, n, scratch(0));
    // The gradient of the forward direction does not depend on the shift.
    if (!backward || p.inverse) d.t = staged(shift(row), p.shift_row, p.shift_channel, e, n, scratch(1));
    if (backward) {
      d.gl_row = gl(row);
      d.gr = past<T>(static_cast<T *>(p.grad_scale), row * s.elements + e);
      d.gt = past<T>(static_cast<T *>(p.grad_shift), row * s.elements + e);
    }
    return d;
  }
};

// Elements [begin, end) of one row, in runs.
template <class T> double run_row(const Call<T> &c, int64_t row, int64_t begin, int64_t end) {
  double total = 0;
  for (int64_t i = 0; i < c.s.runs; ++i) {
    const Run &run = c.s.run[i];
    const int64_t from = run.begin > begin ? run.begin : begin;
    const int64_t to = run.begin + run.count < end ? run.begin + run.count : end;
    if (from >= to) continue;
    if (run.dense < 0) {
      c.passive(row, from, to - from);
      continue;
    }
    for (int64_t b = from; b < to;) {
      const int64_t n = to - b < 2 * kChunk ? to - b : kChunk;
      Dense<T> d = c.dense(row, run.dense + b - run.begin, n);
      d.x = c.x(row) + b;
      if (c.backward) {
        d.gy = past<T>(c.gy(row), b);
        d.gx = past<T>(c.out(row), b);
      } else {
        d.y = c.out(row) + b;
      }
      d.past_cache = c.past_cache && on_a_vector(d.y, d.gx, d.gr, d.gt);
      total += c.run(n, d, c.k);
      b += n;
    }
  }
  return total;
}

// One row whose active elements are packed, a chunk at a time.
template <class T> double packed_row(const Call<T> &c, int64_t row) {
  double total = 0;
  c.around(row);
  for (int64_t e = 0; e < c.s.elements;) {
    const int64_t n = c.s.elements - e < 2 * kChunk ? c.s.elements - e : kChunk;
    Dense<T> d = c.dense(row, e, n);
    pack<T>(c.s, c.p, c.x(row), e, n, c.scratch(2));
    d.x = c.scratch(2);
    if (c.backward) {
      if (c.gy(row) != nullptr) {
        pack<T>(c.s, c.p, c.gy(row), e, n, c.scratch(3));
        d.gy = c.scratch(3);
      }
      d.gx = c.out(row) == nullptr ? nullptr : c.scratch(4);
    } else {
      d.y = c.scratch(4);
    }
    total += c.run(n, d, c.k);
    if (c.out(row) != nullptr) unpack<T>(c.s, c.p, c.scratch(4), e, n, c.in(row), c.out(row), c.past_cache);
    e += n;
  }
  return total;
}

// Several short rows at once: their active elements fill vectors that one row would not.
template <class T> void packed_rows(const Call<T> &c, int64_t begin, int64_t end) {
  const int64_t size = c.s.elements;
  const CouplingParams &p = c.p;
  Dense<T> d = {};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = (row - begin) * size;
    c.around(row);
    pack<T>(c.s, p, c.x(row), 0, size, c.scratch(2) + at);
    if (p.scale != nullptr) {
      const T *r = span<T>(c.scale(row), p.scale_channel, p.places, 0, size, c.scratch(0) + at);
      if (r != c.scratch(0) + at) copy(size, r, c.scratch(0) + at);
    }
    if (p.shift != nullptr) {
      const T *t = span<T>(c.shift(row), p.shift_channel, p.places, 0, size, c.scratch(1) + at);
      if (t != c.scratch(1) + at) copy(size, t, c.scratch(1) + at);
    }
    if (!c.backward) continue;
    if (p.grad_y != nullptr) pack<T>(c.s, p, c.gy(row), 0, size, c.scratch(3) + at);
    for (int64_t i = 0; i < size; ++i) c.scratch(5)[at + i] = c.gl(row);
  }
  d.x = c.scratch(2);
  d.r = p.scale == nullptr ? nullptr : c.scratch(0);
  d.t = p.shift == nullptr ? nullptr : c.scratch(1);
  if (c.backward) {
    d.gy = p.grad_y == nullptr ? nullptr : c.scratch(3);
    d.gl = c.scratch(5);
    d.gx = p.grad_x == nullptr ? nullptr : c.scratch(4);
    d.gr = past<T>(static_cast<T *>(p.grad_scale), begin * size);
    d.gt = past<T>(static_cast<T *>(p.grad_shift), begin * size);
  } else {
    d.y = c.scratch(4);
    d.l = c.scratch(6);
  }
  c.run((end - begin) * size, d, c.k);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = (row - begin) * size;
    if (c.out(row) != nullptr) unpack<T>(c.s, p, c.scratch(4) + at, 0, size, c.in(row), c.out(row), c.past_cache);
    if (c.backward) continue;
    double total = 0;
    for (int64_t i = 0; i < size; ++i) total += c.scratch(6)[at + i];
    static_cast<T *>(p.logdet)[row] = T(p.inverse ? -total : total);
  }
}

// --- the phases ----------------------------------------------------------------------------------

template <class T> void plan(const CouplingParams &p, CouplingPlan &plan) {
  const int64_t size = p.features * p.places, places = p.places < width<T> ? p.places : int64_t(width<T>);
  plan.parts = size < kLongRow ? 1 : (size + kUnit - 1) / kUnit;
  plan.block = size < kUnit ? kUnit / (size > 0 ? size : 1) : 1;
  plan.units = (p.rows + plan.block - 1) / plan.block * plan.parts;
  plan.shared_bytes = aligned(sizeof(Layout)) + aligned(p.features * int64_t(sizeof(Run))) +
                      aligned(p.features * int64_t(sizeof(int64_t))) +
                      aligned(p.active_features * places * int64_t(sizeof(uint32_t))) +
                      (plan.parts > 1 ? p.rows * plan.parts * int64_t(sizeof(double)) : 0);
  plan.worker_bytes = kBuffers * 2 * kChunk * int64_t(sizeof(T));
}

template <class T> int64_t prepare(const CouplingParams &p, const CouplingPlan &, void *shared) {
  char *at = static_cast<char *>(shared);
  Layout &s = *static_cast<Layout *>(shared);
  s.run = reinterpret_cast<Run *>(at += aligned(sizeof(Layout)));
  int64_t *slot = reinterpret_cast<int64_t *>(at += aligned(p.features * int64_t(sizeof(Run))));
  s.index = reinterpret_cast<uint32_t *>(at += aligned(p.features * int64_t(sizeof(int64_t))));
  const int64_t places = p.places < width<T> ? p.places : int64_t(width<T>);
  s.sums = reinterpret_cast<double *>(at + aligned(p.active_features * places * int64_t(sizeof(uint32_t))));
  s.elements = p.active_features * p.places;
  // An empty tensor has no address either.
  const bool all = p.active == nullptr && p.active_features == p.features;
  for (int64_t d = 0; d < p.features; ++d) slot[d] = all ? d : -1;
  if (!all) {
    for (int64_t j = 0; j < p.active_features; ++j) {
      const int64_t d = p.active[j];
      if (d < 0 || d >= p.features || slot[d] >= 0) return j + 1;
      slot[d] = j;
    }
  }
  s.runs = 0;
  int64_t active_runs = 0;
  for (int64_t d = 0; d < p.features;) {
    int64_t n = 1;
    while (d + n < p.features && (slot[d] < 0 ? slot[d + n] < 0 : slot[d + n] == slot[d] + n)) ++n;
    s.run[s.runs++] = {d * p.places, slot[d] < 0 ? -1 : slot[d] * p.places, n * p.places};
    active_runs += slot[d] >= 0;
    d += n;
  }
  // From here on `active` is not read again: whoever writes to it meanwhile changes no address.
  const bool small = p.features * p.places < int64_t(1) << 32;  // an index has 32 bits
  s.kind = s.elements == 0 || s.elements >= active_runs * width<T> || !small ? kRuns : kScattered;
  if (s.kind == kRuns) return 0;
  s.first = 0;
  while (slot[s.first] != 0) ++s.first;
  bool alternating = p.places == 1 && p.active_features > 1 && s.first + 2 * p.active_features - 2 < p.features;
  for (int64_t j = 0; alternating && j < p.active_features; ++j) alternating = slot[s.first + 2 * j] == j;
  if (alternating) s.kind = kAlternating;
  for (int64_t d = 0; d < p.features; ++d)
    for (int64_t place = 0; slot[d] >= 0 && place < p.places; ++place)
      s.index[slot[d] * p.places + place] = uint32_t(d * p.places + place);
  return 0;
}

template <class T, bool Backward>
void run_unit(int64_t unit, const CouplingParams &p, const CouplingPlan &plan, void *shared, void *worker) {
  const Layout &s = *static_cast<const Layout *>(shared);
  const bool no_offset = p.map == kCouplingSigmoid && T(p.clamp) < Float<T>::smallest;
  const int map = p.scale == nullptr ? int(kCouplingAdditive) : no_offset ? int(kCouplingSigmoidZero) : p.map;
  const int64_t size = p.features * p.places;
  const Call<T> c = {p,
                     s,
                     map_constants<T>(p),
                     functions<T>.of[Backward][p.inverse][map],
                     Backward,
                     static_cast<T *>(worker),
                     size,
                     s.kind != kScattered && p.rows * size * int64_t(sizeof(T)) >= kPastCache};
  const int64_t block = unit / plan.parts, part = unit % plan.parts;
  const int64_t begin = block * plan.block;
  const int64_t end = begin + plan.block < p.rows ? begin + plan.block : p.rows;
  T *logdet = static_cast<T *>(p.logdet);
  if (plan.parts > 1 && s.kind == kRuns) {
    const int64_t last = (part + 1) * kUnit < c.size ? (part + 1) * kUnit : c.size;
    const double total = run_row<T>(c, begin, part * kUnit, last);
    if (!Backward) s.sums[begin * plan.parts + part] = total;
    return;
  }
  if (plan.parts > 1) {  // such a row is not cut: its first part does the work
    const double total = part == 0 ? packed_row<T>(c, begin) : 0.;
    if (!Backward) s.sums[begin * plan.parts + part] = total;
    return;
  }
  if (s.kind != kRuns && s.elements < 4 * width<T>) {
    const int64_t together = kChunk / s.elements;
    for (int64_t row = begin; row < end; row += together)
      packed_rows<T>(c, row, row + together < end ? row + together : end);
    return;
  }
  for (int64_t row = begin; row < end; ++row) {
    const double total = s.kind == kRuns ? run_row<T>(c, row, 0, c.size) : packed_row<T>(c, row);
    if (!Backward) logdet[row] = T(p.inverse ? -total : total);
  }
}

template <class T, bool Backward>
void run(int64_t unit, const CouplingParams &p, const CouplingPlan &plan, void *shared, void *worker) {
  run_unit<T, Backward>(unit, p, plan, shared, worker);
  finish_stream();
}

template <class T> void finish(const CouplingParams &p, const CouplingPlan &plan, const void *shared) {
  if (plan.parts == 1) return;
  const double *sums = static_cast<const Layout *>(shared)->sums;
  for (int64_t row = 0; row < p.rows; ++row) {
    double total = 0;
    for (int64_t part = 0; part < plan.parts; ++part) total += sums[row * plan.parts + part];
    static_cast<T *>(p.logdet)[row] = T(p.inverse ? -total : total);
  }
}

template <class T> constexpr CouplingKernel kernel() {
  return {plan<T>, prepare<T>, run<T, false>, run<T, true>, finish<T>};
}

}  // namespace

extern const evidens::CouplingKernel coupling[2];
constexpr evidens::CouplingKernel coupling[2] = {kernel<float>(), kernel<double>()};

}  // namespace EVIDENS_NAMESPACE
