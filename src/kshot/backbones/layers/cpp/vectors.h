// What the sources of the library share: vectors of the widest kind that the processor has, over channels that lie side
// by side, and how a function is given to native.py. Those functions are noexcept: without memory the process ends.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

using Index = std::int64_t;

constexpr Index kTaps = 9;

// Of B images; I input and O output channels of each group. native.py has the same.
struct ConvolutionShape {
  Index images, groups, inputs, outputs, height, width;
};

#if defined(__AVX512F__)
constexpr Index kVectorBytes = 64;
#elif defined(__AVX__)
constexpr Index kVectorBytes = 32;
#else
constexpr Index kVectorBytes = 16;
#endif

template <class T> struct Vector;
template <> struct Vector<float> {
  typedef float Values __attribute__((vector_size(kVectorBytes)));
  typedef std::int32_t Lane;
  typedef Lane Mask __attribute__((vector_size(kVectorBytes)));
};
template <> struct Vector<double> {
  typedef double Values __attribute__((vector_size(kVectorBytes)));
  typedef std::int64_t Lane;
  typedef Lane Mask __attribute__((vector_size(kVectorBytes)));
};
template <class T> using Values = typename Vector<T>::Values;
template <class T> using Mask = typename Vector<T>::Mask;
template <class T> constexpr Index kLanes = kVectorBytes / sizeof(T);

// Channels from `first` on, a vector full of them or the last few: what lies beyond is read as 0 and not written.
struct FullVector {
  Index first;
};
struct PartOfVector {
  Index first, count;
};

template <class T, class F> void for_channels(Index n_channels, F work) {
  Index c = 0;
  for (; c + kLanes<T> <= n_channels; c += kLanes<T>) work(FullVector{c});
  if (c < n_channels) work(PartOfVector{c, n_channels - c});
}

template <class T> inline Index count(FullVector) { return kLanes<T>; }
template <class T> inline Index count(PartOfVector c) { return c.count; }

template <class T> inline Values<T> load(const T* from, FullVector = {}) {
  Values<T> values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}
template <class T> inline Values<T> load(const T* from, PartOfVector c) {
  Values<T> values{};
  std::memcpy(&values, from, c.count * sizeof(T));
  return values;
}

template <class T, class Channels> inline void store(T* to, Values<T> values, Channels c) {
  std::memcpy(to, &values, count<T>(c) * sizeof(T));
}

}  // namespace

#define KSHOT_EXPORT(function)                         \
  auto* kshot_##function##_float32 = &function<float>; \
  auto* kshot_##function##_float64 = &function<double>;
