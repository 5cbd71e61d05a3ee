// Where a row's numbers are, for the threads that own it.
//
// Vectors: classes are contiguous; each thread of the row's group owns every size-th vector of 16 bytes in all sweeps. A
// resident panel copies them, as stored, into the thread's own column of shared memory, so no thread waits for a barrier and no
// bank conflicts; others read device memory again in each sweep.
// Singles: a thread walks single classes: rows that neighbour in memory class by class (channels first), or rows so narrow
// that the block's rows are staged in shared memory as one flat copy.
#pragma once
#include "row.cuh"

namespace ensdistill::cuda {

// The parts that both share.
template <class Student_, class Target_, int V_, Meeting kMeeting>
struct PanelBase {
  using Student = Student_;
  using Target = Target_;
  using Real = typename Traits<Student>::Real;
  using Group = cuda::Group<kMeeting>;
  static constexpr int V = V_;

  const Problem& p;
  Group& group;
  unsigned char* memory;
  Span<V> span;
  int all_steps = 0;  // also of a row that doesn't count, whose gradient is to be zero
  int64_t student_start = 0;

  ENSDISTILL_DEVICE PanelBase(const Problem& p, Group& group, unsigned char* memory) : p(p), group(group), memory(memory) {}

  ENSDISTILL_DEVICE Decoding<Real> decoding_of(int k, int64_t row) const {
    Decoding<Real> d;
    d.probability = p.kind == Kind::probs;
    if (!p.scale) return d;
    const int64_t m = p.member[k];
    const AffineCodes<Real> map(p.scale[m * p.scale_member_stride + row * p.scale_row_stride],
                                p.offset[m * p.offset_member_stride + row * p.offset_row_stride]);
    d.step = map.step, d.offset = map.offset, d.zero_value = map.zero_value;
    return d;
  }
  ENSDISTILL_DEVICE int64_t member_start(int k, int64_t row) const {
    return p.member[k] * p.target_member_stride + p.targets.at(row, int64_t(p.inner));
  }
  ENSDISTILL_DEVICE Real student_at(int c) const {
    return Real(number_at(p.student.data, p.student.type, student_start + c * p.student.class_stride));
  }
  ENSDISTILL_DEVICE Real member_at(int k, int64_t row, int c) const {
    const Real x = Real(number_at(p.targets.data, p.targets.type, member_start(k, row) + c * p.targets.class_stride));
    const Decoding<Real> decoding = decoding_of(k, row);
    return p.targets.type == Element::u8 ? decoding.template operator()<uint8_t>(x) : decoding.template operator()<Real>(x);
  }

  // Of plans that hold all members at once.
  ENSDISTILL_DEVICE MemberNumbers<Real>& member_of_row(int k) const {
    return reinterpret_cast<MemberNumbers<Real>*>(memory + p.members_at)[k * p.rows_per_block + group.index];
  }
  // Each member's softmax, for walks that read again.
  ENSDISTILL_DEVICE Real* softmax_slot(int k) const {
    return reinterpret_cast<Real*>(memory + p.member_softmax_at) + 2 * (k * p.rows_per_block + group.index);
  }
  ENSDISTILL_DEVICE void keep_softmax(int k, const Softmax<Real>& s) const {
    if (p.member_softmax_at >= 0 && group.first_here()) softmax_slot(k)[0] = s.max, softmax_slot(k)[1] = s.log_sum;
  }
  ENSDISTILL_DEVICE Softmax<Real> softmax(int k, Real inv_t) const {
    Softmax<Real> s;
    s.max = softmax_slot(k)[0], s.inv_t = inv_t, s.log_sum = softmax_slot(k)[1];
    return s;
  }
};

// The parts of a row on chip: none; the student, and members in turn beside their sum; the student and all members.
enum class Holding { nothing, in_turn, at_once };

template <class Student, class Target, Holding kHolding>
struct Vectors : PanelBase<Student, Target, Traits<Student>::vector, kHolding == Holding::nothing ? Meeting::block : Meeting::any> {
  using Base = PanelBase<Student, Target, Traits<Student>::vector, kHolding == Holding::nothing ? Meeting::block : Meeting::any>;
  using Base::p, Base::group, Base::memory, Base::span, Base::student_start;
  static constexpr int V = Base::V;
  static constexpr bool kResident = kHolding != Holding::nothing, kAtOnce = kHolding == Holding::at_once, kRereads = !kResident;
  // Vectors loaded before the first is used; more would cost registers, and with them warps. On chip it matters that
  // sums are rescaled rarely.
  static constexpr int U = kResident ? 8 / V : sizeof(Target) > sizeof(Student) ? 1 : 2;
  Student* gradient = nullptr;

  using Base::Base;

  template <class Row>
  ENSDISTILL_DEVICE void open(const Row& row) {
    student_start = p.student.at(row.row, int64_t(p.inner));
    gradient = p.gradient ? static_cast<Student*>(p.gradient) + p.gradient_layout.at(row.row, int64_t(p.inner)) : nullptr;
    const int shift = cut(row.row);
    const int vectors = (int(p.classes) + shift + V - 1) / V;
    this->all_steps = vectors > group.rank ? (vectors - group.rank + group.size - 1) / group.size : 0;
    span = {group.rank * V - shift, group.size * V, int(p.classes), row.active ? this->all_steps : 0};
    if constexpr (kResident) {
      student().bring(source());
      if (p.kind != Kind::topk) bring_member(0, row.row);
    }
  }
  // Elements from a boundary of 16 bytes to the row's first, of two among student, gradient and targets that agree, if there are two; else
  // the student's. The third is read or written by words: rows of padded vocabularies, whose gradient is not padded.
  ENSDISTILL_DEVICE int cut(int64_t row) const {
    const int ours = Source<Student, V>::offset_of(static_cast<const Student*>(p.student.data) + student_start);
    if (!gradient || p.kind == Kind::topk) return ours;
    const int written = Source<Student, V>::offset_of(gradient);
    using Theirs = Source<Target, V>;
    const int theirs = Theirs::offset_of(static_cast<const Target*>(p.targets.data) + p.targets.at(row, int64_t(p.inner)));
    return (written - theirs) % (Theirs::width / int(sizeof(Target))) == 0 ? written : ours;
  }
  ENSDISTILL_DEVICE void wait_for_student() const {
    if constexpr (!kResident) return;
    if (p.kind == Kind::topk) async_wait<0>();
    else async_wait<1>();
  }
  ENSDISTILL_DEVICE void close() const {}

  ENSDISTILL_DEVICE Source<Student, V> source() const {
    return Source<Student, V>(static_cast<const Student*>(p.student.data) + student_start, span, {});
  }
  ENSDISTILL_DEVICE auto student() const {
    if constexpr (kResident) return shelf<Student>(0);
    else return source();
  }
  ENSDISTILL_DEVICE Source<Target, V> member(int k, int64_t row) const {
    return Source<Target, V>(static_cast<const Target*>(p.targets.data) + this->member_start(k, row), span, this->decoding_of(k, row));
  }
  ENSDISTILL_DEVICE void bring_member(int k, int64_t row) const { shelf_at(kAtOnce ? k : k & (p.buffers - 1), {}).bring(member(k, row)); }

  // Shelves, one after the other: the student's, the targets' buffers, the sum of members in turn.
  template <class T>
  ENSDISTILL_DEVICE Shelf<T, V> shelf(int64_t bytes_before, const Decoding<float>& decoding = {}) const {
    return {memory + p.shelves_at + bytes_before * p.steps * blockDim.x + threadIdx.x * Shelf<T, V>::piece, decoding};
  }
  // Of one buffer, or of two in turn.
  ENSDISTILL_DEVICE Shelf<Target, V> shelf_of(int k, int64_t row) const { return shelf_at(k & (p.buffers - 1), this->decoding_of(k, row)); }
  ENSDISTILL_DEVICE Softmax<float> softmax(int k, float inv_t) const {
    if constexpr (!kAtOnce) return Base::softmax(k, inv_t);
    Softmax<float> s;
    s.max = this->member_of_row(k).max, s.inv_t = inv_t, s.log_sum = this->member_of_row(k).log_sum;
    return s;
  }
  // Of a buffer for each member.
  ENSDISTILL_DEVICE Shelf<Target, V> own_shelf_of(int k) const {
    const MemberNumbers<float>& m = this->member_of_row(k);
    return shelf_at(k, {m.step, m.offset, m.zero_value, p.kind == Kind::probs});
  }
  ENSDISTILL_DEVICE Shelf<Target, V> shelf_at(int buffer, const Decoding<float>& decoding) const {
    return shelf<Target>(16 + buffer * Packed<Target, V>::bytes, decoding);
  }
  ENSDISTILL_DEVICE Shelf<float, V> sum() const { return shelf<float>(16 + p.buffers * Packed<Target, V>::bytes); }

  ENSDISTILL_DEVICE void store(int step, const float* g) const {
    const int first = span.first(step);
    if (span.whole(first)) {
      const auto packed = Packed<Student, V>::encode(g);
      if (reinterpret_cast<uintptr_t>(gradient + first) % 16 == 0) packed.put(reinterpret_cast<unsigned char*>(gradient + first));
      else packed.store_words(gradient + first);
      return;
    }
#pragma unroll
    for (int j = 0; j < V; ++j)
      if (span.inside(first + j)) put_number(gradient + first + j, g[j]);
  }
};

template <class Student, class Target, bool kStaged>
struct Singles : PanelBase<Student, Target, 1, std::is_same_v<Student, Any> ? Meeting::block : Meeting::alone> {
  using Base = PanelBase<Student, Target, 1, std::is_same_v<Student, Any> ? Meeting::block : Meeting::alone>;
  using Base::p, Base::group, Base::memory, Base::span, Base::student_start;
  using Real = typename Base::Real;
  static constexpr bool kResident = false, kAtOnce = false, kRereads = false;
  static constexpr int U = 4;
  int64_t gradient_start = 0, first_row = 0;
  int rows_here = 0;

  using Base::Base;

  template <class Row>
  ENSDISTILL_DEVICE void open(const Row& row) {
    const int C = int(p.classes);
    student_start = p.student.at(row.row, int64_t(p.inner));
    if (p.gradient) gradient_start = p.gradient_layout.at(row.row, int64_t(p.inner));
    this->all_steps = C > group.rank ? (C - group.rank + group.size - 1) / group.size : 0;
    span = {group.rank, group.size, C, row.active ? this->all_steps : 0};
    if constexpr (kStaged) {
      span.start = int(threadIdx.x) % C;  // threads begin at different classes, and so in different banks
      first_row = row.index - group.index;
      rows_here = int(p.rows - first_row < p.rows_per_block ? p.rows - first_row : p.rows_per_block);
      stage(0, static_cast<const unsigned char*>(p.student.data) + first_row * C * int64_t(sizeof(Student)), sizeof(Student));
      const int64_t size = bytes_of(p.targets.type);
      for (int k = 0; k < p.prepared->members_used; ++k)
        stage(member_at_byte(k), static_cast<const unsigned char*>(p.targets.data) + (p.member[k] * p.target_member_stride + first_row * C) * size,
              size);
      async_commit();
      async_wait<0>();
      __syncthreads();
    }
  }
  ENSDISTILL_DEVICE void wait_for_student() const {}
  ENSDISTILL_DEVICE void close() const {
    if constexpr (kStaged) {
      __syncthreads();
      if (p.gradient) flush();
      __syncthreads();  // the next rows come into the same memory
    }
  }

  ENSDISTILL_DEVICE int64_t rounded(int64_t size) const { return (int64_t(p.rows_per_block) * p.classes * size + 15) / 16 * 16; }
  ENSDISTILL_DEVICE int64_t member_at_byte(int k) const { return rounded(sizeof(Student)) + k * rounded(bytes_of(p.targets.type)); }
  ENSDISTILL_DEVICE unsigned char* staged(int64_t byte) const { return memory + p.shelves_at + byte; }

  ENSDISTILL_DEVICE void stage(int64_t to, const unsigned char* from, int64_t size) const {
    const int bytes = int(rows_here * p.classes * size), whole = bytes / 16 * 16;
    for (int b = 16 * int(threadIdx.x); b < whole; b += 16 * int(blockDim.x)) async_copy<16>(staged(to + b), from + b);
    for (int b = whole + int(threadIdx.x); b < bytes; b += int(blockDim.x)) *staged(to + b) = from[b];
  }
  ENSDISTILL_DEVICE void flush() const {
    auto* to = static_cast<unsigned char*>(p.gradient) + first_row * p.classes * int64_t(sizeof(Student));
    const int bytes = int(rows_here * p.classes * int64_t(sizeof(Student))), whole = bytes / 16 * 16;
    for (int b = 16 * int(threadIdx.x); b < whole; b += 16 * int(blockDim.x))
      *reinterpret_cast<uint4*>(to + b) = *reinterpret_cast<const uint4*>(staged(b));
    for (int b = whole + int(threadIdx.x); b < bytes; b += int(blockDim.x)) to[b] = *staged(b);
  }

  ENSDISTILL_DEVICE Elements<Student> student() const {
    if constexpr (kStaged) return {reinterpret_cast<const Student*>(staged(0)) + group.index * int(p.classes), 1, &span, {}};
    else if constexpr (std::is_same_v<Student, Any>) return {p.student.data, p.student.type, student_start, p.student.class_stride, &span, {}};
    else return {static_cast<const Student*>(p.student.data) + student_start, p.student.class_stride, &span, {}};
  }
  ENSDISTILL_DEVICE Elements<Target> member(int k, int64_t row) const {
    const auto decoding = this->decoding_of(k, row);
    if constexpr (kStaged) return {reinterpret_cast<const Target*>(staged(member_at_byte(k))) + group.index * int(p.classes), 1, &span, decoding};
    else if constexpr (std::is_same_v<Student, Any>)
      return {p.targets.data, p.targets.type, this->member_start(k, row), p.targets.class_stride, &span, decoding};
    else return {static_cast<const Target*>(p.targets.data) + this->member_start(k, row), p.targets.class_stride, &span, decoding};
  }

  // A thread has read its class's logit before it stores the gradient in its place.
  ENSDISTILL_DEVICE void store(int step, const Real* g) const {
    const int c = span.first(step);
    if constexpr (kStaged) put_number(reinterpret_cast<Student*>(staged(0)) + group.index * int(p.classes) + c, g[0]);
    else if constexpr (std::is_same_v<Student, Any>)
      put_number_at(p.gradient, p.gradient_layout.type, gradient_start + c * p.gradient_layout.class_stride, g[0]);
    else put_number(static_cast<Student*>(p.gradient) + gradient_start + c * p.gradient_layout.class_stride, g[0]);
  }
};

}  // namespace ensdistill::cuda
