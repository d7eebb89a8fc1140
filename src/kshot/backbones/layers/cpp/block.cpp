// The memory-bound half of kshot's convolution blocks, for one CPU: native.py compiles and calls it.
//
// Tensors are channels-last and dense. Shapes: B images, G groups, I input and O output channels of a group, C
// channels, H,W, h,w = H/2,W/2; a patch of an image is its I*9 values under the convolution's window, zero beyond the
// edge.
// `where` holds for each pooled value which of its four pixels was the largest, 0 to 3 by row and column, or
// kClipped where ReLU made it 0. Sums run over fixed chunks of images and those are added in order, so that no
// result depends on the number of threads.

#include "vectors.h"

#include <cmath>
#include <vector>

namespace {

using Place = std::uint8_t;

constexpr Place kClipped = 4;
constexpr Index kImagesOfChunk = 8;

template <class T> struct Places;
template <> struct Places<float> { typedef Place Vector __attribute__((vector_size(kLanes<float>))); };
template <> struct Places<double> { typedef Place Vector __attribute__((vector_size(kLanes<double>))); };

template <class T, class Channels> inline Mask<T> load_places(const Place* from, Channels c) {
  typename Places<T>::Vector places{};
  std::memcpy(&places, from, count<T>(c));
  return __builtin_convertvector(places, Mask<T>);
}

template <class T, class Channels> inline void store_places(Place* to, Mask<T> mask, Channels c) {
  const auto places = __builtin_convertvector(mask, typename Places<T>::Vector);
  std::memcpy(to, &places, count<T>(c));
}

template <class T> inline Values<T> only(Mask<T> mask, Values<T> values) { return mask ? values : Values<T>{}; }

// The first `count` lanes.
template <class T> inline Mask<T> before(Index count) {
  Mask<T> lane;
  for (Index i = 0; i < kLanes<T>; ++i) lane[i] = i;
  return lane < static_cast<typename Vector<T>::Lane>(std::min(count, kLanes<T>));
}

// The largest of the four pixels of a window, the first of equals as torch has it, and which it was.
template <class T> inline Values<T> largest(const Values<T> (&pixel)[4], Mask<T>& place) {
  Values<T> most = pixel[0];
  place = Mask<T>{};
  for (int q = 1; q < 4; ++q) {
    const Mask<T> more = pixel[q] > most;
    most = more ? pixel[q] : most;
    place = more ? Mask<T>{} + q : place;
  }
  return most;
}

// ---- The first block: few input channels, no gradient of the images ----------------------------------------------

struct Convolution : ConvolutionShape {
  Index pooled_height() const { return height / 2; }
  Index pooled_width() const { return width / 2; }
  Index pooled() const { return pooled_height() * pooled_width(); }
  Index chunks() const { return (images + kImagesOfChunk - 1) / kImagesOfChunk; }
  Index patch() const { return inputs * kTaps; }
};

// The channels of one group of one image as planes with a border of zeros, (I, H+2, W+2), and room to read on.
template <class T> class Planes {
 public:
  explicit Planes(const Convolution& s)
      : s_(s), stride_(s.width + 2), size_((s.height + 2) * stride_), values_(s.inputs * size_ + kLanes<T>, T{}) {}

  void fill(const T* images, Index image, Index group) {
    const Index step = s_.groups * s_.inputs;
    const T* from = images + image * s_.height * s_.width * step + group * s_.inputs;
    for (Index i = 0; i < s_.inputs; ++i)
      for (Index y = 0; y < s_.height; ++y) {
        T* to = values_.data() + i * size_ + (y + 1) * stride_ + 1;
        for (Index x = 0; x < s_.width; ++x) to[x] = from[(y * s_.width + x) * step + i];
      }
  }
  // The value under the window's upper left corner when it stands at (y, x) of input channel i.
  const T* at(Index i, Index y, Index x) const { return values_.data() + i * size_ + y * stride_ + x; }
  Index stride() const { return stride_; }

 private:
  const Convolution& s_;
  Index stride_, size_;
  std::vector<T> values_;
};

// Sums (G, size) over all images, to which `add(planes, image, group, part)` adds an image's; see the top of the file
// for their order.
template <class T, class F>
std::vector<double> sums_over_images(const T* images, const Convolution& s, Index size, F add) {
  std::vector<double> parts(s.chunks() * s.groups * size, 0.0), total(s.groups * size, 0.0);
#pragma omp parallel for schedule(static) collapse(2)
  for (Index chunk = 0; chunk < s.chunks(); ++chunk)
    for (Index group = 0; group < s.groups; ++group) {
      Planes<T> planes(s);
      double* part = parts.data() + (chunk * s.groups + group) * size;
      const Index end = std::min(s.images, (chunk + 1) * kImagesOfChunk);
      for (Index image = chunk * kImagesOfChunk; image < end; ++image) {
        planes.fill(images, image, group);
        add(planes, image, group, part);
      }
    }
  for (Index chunk = 0; chunk < s.chunks(); ++chunk)
    for (Index at = 0; at < s.groups * size; ++at) total[at] += parts[chunk * s.groups * size + at];
  return total;
}

// Sums (G, K) and sums of products (G, K, K) over all patches of K = I*9 values.
template <class T>
void patch_moments(const T* images, const Convolution& s, double* sums, double* products) noexcept {
  constexpr Index kRows = 8;  // added up in T before they go into a double
  const Index k = s.patch(), size = k + k * k;
  const auto add = [&](const Planes<T>& planes, Index, Index, double* part) {
    for (Index a = 0; a < k; ++a)
      for (Index i = a / kTaps; i < s.inputs; ++i)
        for (Index first = 0; first < s.height; first += kRows) {
          Values<T> sum{}, product[kTaps] = {};
          for (Index y = first; y < std::min(s.height, first + kRows); ++y) {
            const T* of_a = planes.at(a / kTaps, y + a % kTaps / 3, a % 3);
            const T* corner = planes.at(i, y, 0);
            for (Index x = 0; x < s.width; x += kLanes<T>) {
              const Values<T> value = only<T>(before<T>(s.width - x), load<T>(of_a + x));
              sum += value;
              for (Index tap = 0; tap < kTaps; ++tap)
                product[tap] += value * load<T>(corner + tap / 3 * planes.stride() + tap % 3 + x);
            }
          }
          for (Index lane = 0; lane < kLanes<T>; ++lane) {
            if (i == a / kTaps) part[a] += sum[lane];
            for (Index tap = 0; tap < kTaps; ++tap) part[k + a * k + i * kTaps + tap] += product[tap][lane];
          }
        }
  };
  const std::vector<double> total = sums_over_images<T>(images, s, size, add);
  for (Index group = 0; group < s.groups; ++group) {
    const double* of_group = total.data() + group * size;
    std::copy_n(of_group, k, sums + group * k);
    for (Index a = 0; a < k; ++a)
      for (Index b = 0; b < k; ++b)
        products[(group * k + a) * k + b] = of_group[k + std::min(a, b) * k + std::max(a, b)];
  }
}

// The convolution at the four pixels of the pooled pixel (y, x).
template <class T, class Channels>
inline void convolve(const Planes<T>& planes, const T* weight, const Convolution& s, Channels c, Index y, Index x,
                     Values<T> (&pixel)[4]) {
  for (auto& value : pixel) value = Values<T>{};
  for (Index i = 0; i < s.inputs; ++i) {
    const T* corner = planes.at(i, 2 * y, 2 * x);
    for (Index tap = 0; tap < kTaps; ++tap) {
      const Values<T> factor = load<T>(weight + (i * kTaps + tap) * s.outputs + c.first, c);
      const T* from = corner + tap / 3 * planes.stride() + tap % 3;
      for (int q = 0; q < 4; ++q) pixel[q] += factor * from[q / 2 * planes.stride() + q % 2];
    }
  }
}

template <class T, class F> void for_pooled_pixels(const T* images, const Convolution& s, F work) {
#pragma omp parallel for schedule(static) collapse(2)
  for (Index image = 0; image < s.images; ++image)
    for (Index group = 0; group < s.groups; ++group) {
      Planes<T> planes(s);
      planes.fill(images, image, group);
      for (Index y = 0; y < s.pooled_height(); ++y)
        for_channels<T>(s.outputs, [&](auto c) {
          for (Index x = 0; x < s.pooled_width(); ++x) {
            const Index pixel = image * s.pooled() + y * s.pooled_width() + x;
            work(planes, group, c, y, x, (pixel * s.groups + group) * s.outputs + c.first);
          }
        });
    }
}

// y = relu(pool(convolution(images)) + shift) and where; weight (G, I*9, O), shift (G, O).
template <class T>
void conv_relu_pool(const T* images, const T* weight, const T* shift, const Convolution& s, T* y,
                    Place* where) noexcept {
  for_pooled_pixels<T>(images, s, [&](const Planes<T>& planes, Index group, auto c, Index row, Index column,
                                      Index to) {
    Values<T> pixel[4];
    convolve<T>(planes, weight + group * s.patch() * s.outputs, s, c, row, column, pixel);
    Mask<T> place;
    const Values<T> value = largest<T>(pixel, place) + load<T>(shift + group * s.outputs + c.first, c);
    const Mask<T> clipped = value <= 0;
    store<T>(y + to, clipped ? Values<T>{} : value, c);
    store_places<T>(where + to, clipped ? Mask<T>{} + kClipped : place, c);
  });
}

// The convolution and its shift read at `where`, 0 where that is clipped: the derivative of the block in a direction.
template <class T>
void conv_at_maxima(const T* images, const T* weight, const T* shift, const Place* where, const Convolution& s,
                    T* y) noexcept {
  for_pooled_pixels<T>(images, s, [&](const Planes<T>& planes, Index group, auto c, Index row, Index column,
                                      Index to) {
    Values<T> pixel[4];
    convolve<T>(planes, weight + group * s.patch() * s.outputs, s, c, row, column, pixel);
    const Mask<T> place = load_places<T>(where + to, c);
    Values<T> value{};
    for (int q = 0; q < 4; ++q) value += only<T>(place == q, pixel[q]);
    value += only<T>(place != kClipped, load<T>(shift + group * s.outputs + c.first, c));
    store<T>(y + to, value, c);
  });
}

// weight_bar (G, I*9, O) and shift_bar (G, O): what conv_at_maxima is the transpose of.
template <class T>
void conv_relu_pool_gradient(const T* y_bar, const T* images, const Place* where, const Convolution& s, T* weight_bar,
                             T* shift_bar) noexcept {
  const Index size = (s.patch() + 1) * s.outputs;
  const auto add = [&](const Planes<T>& planes, Index image, Index group, double* part) {
    for_channels<T>(s.outputs, [&](auto c) {
      for (Index i = 0; i < s.inputs; ++i) {
        Values<T> of_tap[kTaps] = {}, of_shift{};
        for (Index y = 0; y < s.pooled_height(); ++y)
          for (Index x = 0; x < s.pooled_width(); ++x) {
            const Index pixel = image * s.pooled() + y * s.pooled_width() + x;
            const Index at = (pixel * s.groups + group) * s.outputs + c.first;
            const Values<T> g = load<T>(y_bar + at, c);
            const Mask<T> place = load_places<T>(where + at, c);
            const T* corner = planes.at(i, 2 * y, 2 * x);
            for (int q = 0; q < 4; ++q) {
              const Values<T> here = only<T>(place == q, g);
              const T* from = corner + q / 2 * planes.stride() + q % 2;
              of_shift += here;
              for (Index tap = 0; tap < kTaps; ++tap)
                of_tap[tap] += here * from[tap / 3 * planes.stride() + tap % 3];
            }
          }
        for (Index lane = 0; lane < count<T>(c); ++lane) {
          for (Index tap = 0; tap < kTaps; ++tap)
            part[(i * kTaps + tap) * s.outputs + c.first + lane] += of_tap[tap][lane];
          if (i == 0) part[s.patch() * s.outputs + c.first + lane] += of_shift[lane];
        }
      }
    });
  };
  const std::vector<double> total = sums_over_images<T>(images, s, size, add);
  for (Index group = 0; group < s.groups; ++group)
    for (Index at = 0; at < size; ++at) {
      const T value = static_cast<T>(total[group * size + at]);
      if (at < s.patch() * s.outputs) {
        weight_bar[group * s.patch() * s.outputs + at] = value;
      } else {
        shift_bar[group * s.outputs + at - s.patch() * s.outputs] = value;
      }
    }
}

// ---- Every block: statistics, normalisation, ReLU and pooling of what a convolution gave ---------------------------

struct Batch {
  Index images, channels, height, width;
  Index pooled_height() const { return height / 2; }
  Index pooled_width() const { return width / 2; }
  Index pooled() const { return pooled_height() * pooled_width(); }
  double count() const { return static_cast<double>(images) * height * width; }
};

// `row(image, c, y)` for each row of windows, `rest(image, c, y, x)` for each pixel that an odd size leaves over.
template <class T, class Row, class Rest> void for_rows(const Batch& s, Row row, Rest rest) {
#pragma omp parallel for schedule(static)
  for (Index image = 0; image < s.images; ++image) {
    for (Index y = 0; y < s.pooled_height(); ++y) for_channels<T>(s.channels, [&](auto c) { row(image, c, y); });
    for_channels<T>(s.channels, [&](auto c) {
      if (s.width % 2)
        for (Index y = 0; y < s.height; ++y) rest(image, c, y, s.width - 1);
      if (s.height % 2)
        for (Index x = 0; x < s.width / 2 * 2; ++x) rest(image, c, s.height - 1, x);
    });
  }
}

// Some sums by image and channel, for `for_rows` to fill, and their totals in the order of the images.
template <int kSums> class Sums {
 public:
  explicit Sums(const Batch& s) : s_(s), parts_(s.images * kSums * s.channels, 0.0) {}

  template <class T, class Channels> void add(int sum, Index image, Channels c, Values<T> values) {
    double* part = parts_.data() + (image * kSums + sum) * s_.channels + c.first;
    for (Index lane = 0; lane < count<T>(c); ++lane) part[lane] += values[lane];
  }
  double total(int sum, Index channel) const {
    double total = 0;
    for (Index image = 0; image < s_.images; ++image) total += parts_[(image * kSums + sum) * s_.channels + channel];
    return total;
  }

 private:
  const Batch& s_;
  std::vector<double> parts_;
};

// Where the pixels and the pooled pixels of channels `c` of an image lie.
struct Layout {
  const Batch& s;
  template <class Channels> Index pixel(Index image, Channels c, Index y, Index x) const {
    return ((image * s.height + y) * s.width + x) * s.channels + c.first;
  }
  template <class Channels> Index pooled(Index image, Channels c, Index y, Index x) const {
    return ((image * s.pooled_height() + y) * s.pooled_width() + x) * s.channels + c.first;
  }
  // From a window's first pixel to its pixel q.
  Index to(int q) const { return (q / 2 * s.width + q % 2) * s.channels; }
};

// y = pool(relu(slope * (x - mean) * inverse_std + offset)) by the statistics of x, which come back too. The largest
// of a window is the largest or, where the slope is negative, the smallest x, which `extremes` holds. Sums are
// those of the distance to a channel's first pixel: a mean that is large beside the spread costs no digits.
template <class T>
void norm_relu_pool(const T* x, const T* slope, const T* offset, double eps, const Batch& s, T* y, T* extremes,
                    Place* where, T* mean, T* inverse_std) noexcept {
  const Layout at{s};
  Sums<2> sums(s);
  for_rows<T>(
      s,
      [&](Index image, auto c, Index row) {
        const Mask<T> falling = load<T>(slope + c.first, c) < 0;
        const Values<T> pivot = load<T>(x + c.first, c);
        Values<T> sum{}, squares{};
        for (Index column = 0; column < s.pooled_width(); ++column) {
          const T* from = x + at.pixel(image, c, 2 * row, 2 * column);
          Values<T> pixel[4];
          for (int q = 0; q < 4; ++q) pixel[q] = load<T>(from + at.to(q), c);
          for (const auto& value : pixel) {
            const Values<T> centred = value - pivot;
            sum += centred;
            squares += centred * centred;
          }
          for (auto& value : pixel) value = falling ? -value : value;
          Mask<T> place;
          const Values<T> extreme = largest<T>(pixel, place);
          const Index to = at.pooled(image, c, row, column);
          store<T>(extremes + to, falling ? -extreme : extreme, c);
          store_places<T>(where + to, place, c);
        }
        sums.add<T>(0, image, c, sum);
        sums.add<T>(1, image, c, squares);
      },
      [&](Index image, auto c, Index row, Index column) {
        const Values<T> centred = load<T>(x + at.pixel(image, c, row, column), c) - load<T>(x + c.first, c);
        sums.add<T>(0, image, c, centred);
        sums.add<T>(1, image, c, centred * centred);
      });
  std::vector<T> scale(s.channels), shift(s.channels);
  for (Index c = 0; c < s.channels; ++c) {
    const double from_pivot = sums.total(0, c) / s.count(), middle = x[c] + from_pivot;
    const double variance = sums.total(1, c) / s.count() - from_pivot * from_pivot;
    const double inverse = 1 / std::sqrt((variance < 0 ? 0 : variance) + eps);  // NaN stays NaN
    mean[c] = static_cast<T>(middle);
    inverse_std[c] = static_cast<T>(inverse);
    scale[c] = static_cast<T>(slope[c] * inverse);
    shift[c] = static_cast<T>(offset[c] - middle * slope[c] * inverse);
  }
#pragma omp parallel for schedule(static)
  for (Index pixel = 0; pixel < s.images * s.pooled(); ++pixel)
    for_channels<T>(s.channels, [&](auto c) {
      const Index here = pixel * s.channels + c.first;
      const Values<T> value = load<T>(extremes + here, c) * load<T>(scale.data() + c.first, c) +
                              load<T>(shift.data() + c.first, c);
      const Mask<T> clipped = value <= 0, place = load_places<T>(where + here, c);
      store<T>(y + here, clipped ? Values<T>{} : value, c);
      store_places<T>(where + here, clipped ? Mask<T>{} + kClipped : place, c);
    });
}

// x_bar = a g + b x + d v + e at every pixel, by channel; g is only at `where`, and v may be missing.
template <class T> struct Combination {
  std::vector<T> of_g, of_x, of_v, constant;
  explicit Combination(const Batch& s) : of_g(s.channels), of_x(s.channels), of_v(s.channels), constant(s.channels) {}
};

template <class T>
void combine(const T* g, const Place* where, const T* x, const T* v, const Combination<T>& factors, const Batch& s,
             T* x_bar) {
  const Layout at{s};
  const auto without_g = [&](Index pixel, auto c) {
    Values<T> value = load<T>(factors.constant.data() + c.first, c) +
                      load<T>(x + pixel, c) * load<T>(factors.of_x.data() + c.first, c);
    if (v) value += load<T>(v + pixel, c) * load<T>(factors.of_v.data() + c.first, c);
    return value;
  };
  for_rows<T>(
      s,
      [&](Index image, auto c, Index row) {
        const Values<T> of_g = load<T>(factors.of_g.data() + c.first, c);
        for (Index column = 0; column < s.pooled_width(); ++column) {
          const Index pooled = at.pooled(image, c, row, column);
          const Values<T> here = load<T>(g + pooled, c) * of_g;
          const Mask<T> place = load_places<T>(where + pooled, c);
          for (int q = 0; q < 4; ++q) {
            const Index pixel = at.pixel(image, c, 2 * row, 2 * column) + at.to(q);
            store<T>(x_bar + pixel, without_g(pixel, c) + only<T>(place == q, here), c);
          }
        }
      },
      [&](Index image, auto c, Index row, Index column) {
        const Index pixel = at.pixel(image, c, row, column);
        store<T>(x_bar + pixel, without_g(pixel, c), c);
      });
}

// Gradients of x, slope and offset; see conv_block.py for the formula.
template <class T>
void norm_relu_pool_gradient(const T* y_bar, const T* x, const T* slope, const T* extremes, const Place* where,
                             const T* mean, const T* inverse_std, const Batch& s, T* x_bar, T* slope_bar,
                             T* offset_bar) noexcept {
  const Layout at{s};
  Sums<2> sums(s);
  for_rows<T>(
      s,
      [&](Index image, auto c, Index row) {
        const Values<T> middle = load<T>(mean + c.first, c);
        Values<T> sum{}, with_extreme{};
        for (Index column = 0; column < s.pooled_width(); ++column) {
          const Index here = at.pooled(image, c, row, column);
          const Values<T> g = only<T>(load_places<T>(where + here, c) != kClipped, load<T>(y_bar + here, c));
          sum += g;
          with_extreme += g * (load<T>(extremes + here, c) - middle);
        }
        sums.add<T>(0, image, c, sum);
        sums.add<T>(1, image, c, with_extreme);
      },
      [](Index, auto, Index, Index) {});
  Combination<T> factors(s);
  for (Index c = 0; c < s.channels; ++c) {
    const double r = inverse_std[c], scale = slope[c] * r;
    const double of_offset = sums.total(0, c), of_slope = sums.total(1, c) * r;
    const double tilt = -scale * r * of_slope / s.count();
    slope_bar[c] = static_cast<T>(of_slope);
    offset_bar[c] = static_cast<T>(of_offset);
    factors.of_g[c] = static_cast<T>(scale);
    factors.of_x[c] = static_cast<T>(tilt);
    factors.constant[c] = static_cast<T>(-scale * of_offset / s.count() - tilt * mean[c]);
  }
  combine<T>(y_bar, where, x, nullptr, factors, s, x_bar);
}

// Gradients of y_bar, x and slope for the cotangents v, v_slope and v_offset of the three above; see conv_block.py.
template <class T>
void norm_relu_pool_second(const T* v, const T* v_slope, const T* v_offset, const T* y_bar, const T* x,
                           const T* slope, const T* extremes, const Place* where, const T* mean, const T* inverse_std,
                           const T* slope_bar, const T* offset_bar, const Batch& s, T* of_y_bar, T* of_x,
                           T* of_slope) noexcept {
  const Layout at{s};
  Sums<3> sums(s);
  const auto at_maximum = [&](Index image, auto c, Index row, Index column, Mask<T> place) {
    const T* from = v + at.pixel(image, c, 2 * row, 2 * column);
    Values<T> value{};
    for (int q = 0; q < 4; ++q) value += only<T>(place == q, load<T>(from + at.to(q), c));
    return value;
  };
  for_rows<T>(
      s,
      [&](Index image, auto c, Index row) {
        const Values<T> middle = load<T>(mean + c.first, c);
        Values<T> sum{}, with_x{}, with_g{};
        for (Index column = 0; column < s.pooled_width(); ++column) {
          const Index pooled = at.pooled(image, c, row, column);
          const Mask<T> place = load_places<T>(where + pooled, c);
          with_g += load<T>(y_bar + pooled, c) * at_maximum(image, c, row, column, place);
          for (int q = 0; q < 4; ++q) {
            const Index pixel = at.pixel(image, c, 2 * row, 2 * column) + at.to(q);
            const Values<T> value = load<T>(v + pixel, c);
            sum += value;
            with_x += value * (load<T>(x + pixel, c) - middle);
          }
        }
        sums.add<T>(0, image, c, sum);
        sums.add<T>(1, image, c, with_x);
        sums.add<T>(2, image, c, with_g);
      },
      [&](Index image, auto c, Index row, Index column) {
        const Index pixel = at.pixel(image, c, row, column);
        const Values<T> value = load<T>(v + pixel, c);
        sums.add<T>(0, image, c, value);
        sums.add<T>(1, image, c, value * (load<T>(x + pixel, c) - load<T>(mean + c.first, c)));
      });

  Combination<T> factors(s);
  std::vector<T> of_extreme(s.channels), of_u(s.channels), constant(s.channels);
  for (Index c = 0; c < s.channels; ++c) {
    const double n = s.count(), r = inverse_std[c], m = mean[c], scale = slope[c] * r;
    const double sum_g = offset_bar[c], sum_g_phat = slope_bar[c];
    const double sum_v = sums.total(0, c), sum_v_xhat = sums.total(1, c) * r;
    const double q = sums.total(2, c) - (sum_g * sum_v + sum_g_phat * sum_v_xhat) / n;
    const double of_phat = v_slope[c] - scale * sum_v_xhat / n, of_v = -scale * sum_g_phat / n;
    const double mean_bar = (of_phat * sum_g + of_v * sum_v) / n;
    const double mean_bar_xhat = (of_phat * sum_g_phat + of_v * sum_v_xhat) / n;
    const double tilt = -(r * mean_bar_xhat + slope[c] * q * r * r / n) * r;
    of_slope[c] = static_cast<T>(r * q);
    of_extreme[c] = static_cast<T>(of_phat * r);
    of_u[c] = static_cast<T>(scale);
    constant[c] = static_cast<T>(v_offset[c] - scale * sum_v / n - of_phat * r * m);
    factors.of_g[c] = static_cast<T>(r * of_phat);
    factors.of_x[c] = static_cast<T>(tilt);
    factors.of_v[c] = static_cast<T>(r * of_v);
    factors.constant[c] = static_cast<T>(-r * mean_bar - tilt * m);
  }
  for_rows<T>(
      s,
      [&](Index image, auto c, Index row) {
        for (Index column = 0; column < s.pooled_width(); ++column) {
          const Index pooled = at.pooled(image, c, row, column);
          const Mask<T> place = load_places<T>(where + pooled, c);
          const Values<T> value = load<T>(extremes + pooled, c) * load<T>(of_extreme.data() + c.first, c) +
                                  load<T>(constant.data() + c.first, c) +
                                  at_maximum(image, c, row, column, place) * load<T>(of_u.data() + c.first, c);
          store<T>(of_y_bar + pooled, only<T>(place != kClipped, value), c);
        }
      },
      [](Index, auto, Index, Index) {});
  combine<T>(y_bar, where, x, v, factors, s, of_x);
}

}  // namespace

extern "C" {
#ifdef __clang__
const char* kshot_compiler = __VERSION__;
#else
const char* kshot_compiler = "GCC " __VERSION__;
#endif

KSHOT_EXPORT(patch_moments)
KSHOT_EXPORT(conv_relu_pool)
KSHOT_EXPORT(conv_at_maxima)
KSHOT_EXPORT(conv_relu_pool_gradient)
KSHOT_EXPORT(norm_relu_pool)
KSHOT_EXPORT(norm_relu_pool_gradient)
KSHOT_EXPORT(norm_relu_pool_second)
}
