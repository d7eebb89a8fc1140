// 3x3 convolutions of stride 1 with a border of zeros, and their gradients, by Winograd's algorithm F(2x2, 3x3): Lavin
// and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, sections 4.1 and 4.2. An output is cut into
// tiles of 2x2 pixels. A tile's 4x4 inputs d and a kernel g go to 16 points, where the convolution is a product:
//   y = A' [sum over input channels (G g G') * (B' d B)] A,   g_bar = G' [sum over tiles (A y_bar A') * (B' d B)] G,
// and the gradient of the input is a convolution again, with the kernels transposed. That is 16 products for 4 pixels,
// not 36; what a tile has beyond the edge is lost. At each point the sums are one product of matrices for many tiles.
//
// Tensors are channels-last and dense. Shapes: B images, G groups, I input and O output channels of a group; weights
// (G*O, 3, 3, I); n' is n rounded up to whole vectors. Sums over tiles run over fixed chunks and those are added in
// order, so that no result depends on the number of threads.

#include "vectors.h"

#include <cstddef>
#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace {

constexpr Index kPoints = 16;
// Tiles at a time. With 64 channels their inputs and outputs at all points and the kernels fit a second-level cache.
constexpr Index kBlock = 24;
// Each chunk has kernels of its own at all points, so there are few; more than 8 threads a group find no work.
constexpr Index kMaxChunks = 8, kBlocksOfChunk = 3;
#if defined(__AVX512F__)
constexpr int kRows = 6, kColumns = 4;  // a product's part that is kept in registers, in values by vectors
#else
constexpr int kRows = 6, kColumns = 2;
#endif

// The channels of one group among those of an image.
struct Group {
  Index all, first, count;
};

struct Shape : ConvolutionShape {
  Group inputs_of(Index group) const { return {groups * inputs, group * inputs, inputs}; }
  Group outputs_of(Index group) const { return {groups * outputs, group * outputs, outputs}; }
  Index tile_rows() const { return (height + 1) / 2; }
  Index tile_columns() const { return (width + 1) / 2; }
  Index tiles() const { return images * tile_rows() * tile_columns(); }
  Index blocks() const { return (tiles() + kBlock - 1) / kBlock; }
  Index chunks() const { return std::min(blocks(), std::clamp(blocks() / kBlocksOfChunk, Index{1}, kMaxChunks)); }
};

template <class T> Index whole_vectors(Index n) { return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>; }

// Memory from the start of a cache line on, not initialised. A thread keeps it for its next buffers: blocks that come
// and go between torch's tensors would leave the process's memory in pieces.
template <class T> class Buffer {
 public:
  explicit Buffer(Index size) : block_(take(size * sizeof(T))) {}
  ~Buffer() { kept().push_back(std::move(block_)); }
  T* data() const { return static_cast<T*>(block_.start.get()); }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(void* start) const { ::operator delete(start, kLine); }
  };
  struct Block {
    std::unique_ptr<void, Free> start;
    std::size_t bytes = 0;
  };

  static std::vector<Block>& kept() {
    thread_local std::vector<Block> blocks;
    return blocks;
  }

  // The smallest that is large enough, else one in place of the largest.
  static Block take(std::size_t bytes) {
    std::vector<Block>& blocks = kept();
    std::sort(blocks.begin(), blocks.end(), [](const Block& a, const Block& b) { return a.bytes < b.bytes; });
    const auto fits = std::find_if(blocks.begin(), blocks.end(), [&](const Block& one) { return one.bytes >= bytes; });
    if (fits != blocks.end()) {
      Block block = std::move(*fits);
      blocks.erase(fits);
      return block;
    }
    if (!blocks.empty()) blocks.pop_back();
    return {std::unique_ptr<void, Free>(::operator new(bytes, kLine)), bytes};
  }

  Block block_;
};

// ---- Products of matrices ----------------------------------------------------------------------------------------

// Element (row, column) is values[row * of_row + column * of_column].
template <class T> struct Matrix {
  T* values;
  Index of_row, of_column = 1;
  Matrix from(Index row, Index column) const { return {values + row * of_row + column * of_column, of_row, of_column}; }
};

// c = a b, or c += a b, of `rows` rows and some whole vectors of columns, all in registers.
template <class T, bool add, int rows, int columns>
inline void multiply_part(Matrix<const T> a, Matrix<const T> b, Index terms, Matrix<T> c) {
  Values<T> sum[rows][columns];
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < columns; ++column) sum[row][column] = Values<T>{};
  for (Index term = 0; term < terms; ++term) {
    Values<T> factor[columns];
    for (int column = 0; column < columns; ++column)
      factor[column] = load<T>(b.values + term * b.of_row + column * kLanes<T>);
    for (int row = 0; row < rows; ++row) {
      const T value = a.values[row * a.of_row + term * a.of_column];
      for (int column = 0; column < columns; ++column) sum[row][column] += value * factor[column];
    }
  }
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < columns; ++column) {
      T* to = c.values + row * c.of_row + column * kLanes<T>;
      store<T>(to, add ? load<T>(to) + sum[row][column] : sum[row][column], FullVector{});
    }
}

// All rows of some whole vectors of columns; those that are left over in parts half as high.
template <class T, bool add, int columns, int rows = kRows>
inline void multiply_rows(Index n_rows, Matrix<const T> a, Matrix<const T> b, Index terms, Matrix<T> c) {
  Index row = 0;
  for (; row + rows <= n_rows; row += rows)
    multiply_part<T, add, rows, columns>(a.from(row, 0), b, terms, c.from(row, 0));
  if constexpr (rows > 1)
    if (row < n_rows)
      multiply_rows<T, add, columns, rows / 2>(n_rows - row, a.from(row, 0), b, terms, c.from(row, 0));
}

// c (rows, columns) = a (rows, terms) b (terms, columns), or c += a b; columns are whole vectors, in b and c dense.
template <class T, bool add, int vectors = kColumns>
void multiply(Index rows, Index columns, Index terms, Matrix<const T> a, Matrix<const T> b, Matrix<T> c) {
  Index column = 0;
  for (; column + vectors * kLanes<T> <= columns; column += vectors * kLanes<T>)
    multiply_rows<T, add, vectors>(rows, a, b.from(0, column), terms, c.from(0, column));
  if constexpr (vectors > 1)
    if (column < columns)
      multiply<T, add, vectors / 2>(rows, columns - column, terms, a, b.from(0, column), c.from(0, column));
}

// ---- To the points and back: along the columns of a square, then along its rows ------------------------------------

// B'
constexpr auto kInputToPoints = [](const auto (&in)[4], auto (&out)[4]) {
  out[0] = in[0] - in[2];
  out[1] = in[1] + in[2];
  out[2] = in[2] - in[1];
  out[3] = in[1] - in[3];
};

// A'
constexpr auto kPointsToOutput = [](const auto (&in)[4], auto (&out)[2]) {
  out[0] = in[0] + in[1] + in[2];
  out[1] = in[1] - in[2] - in[3];
};

// A
constexpr auto kOutputToPoints = [](const auto (&in)[2], auto (&out)[4]) {
  out[0] = in[0];
  out[1] = in[0] + in[1];
  out[2] = in[0] - in[1];
  out[3] = -in[1];
};

// G
constexpr auto kKernelToPoints = [](const auto (&in)[3], auto (&out)[4]) {
  const auto even = (in[0] + in[2]) / 2, odd = in[1] / 2;
  out[0] = in[0];
  out[1] = even + odd;
  out[2] = even - odd;
  out[3] = in[2];
};

// G'
constexpr auto kPointsToKernel = [](const auto (&in)[4], auto (&out)[3]) {
  const auto even = (in[1] + in[2]) / 2;
  out[0] = in[0] + even;
  out[1] = (in[1] - in[2]) / 2;
  out[2] = even + in[3];
};

template <class V, int from, int to, class F>
__attribute__((always_inline)) inline void transform(const V (&in)[from][from], F along, V (&out)[to][to]) {
  V half[from][to];
  for (int column = 0; column < from; ++column) {
    V line[from];
    for (int row = 0; row < from; ++row) line[row] = in[row][column];
    along(line, half[column]);
  }
  for (int row = 0; row < to; ++row) {
    V line[from];
    for (int column = 0; column < from; ++column) line[column] = half[column][row];
    along(line, out[row]);
  }
}

// ---- Tiles of images ---------------------------------------------------------------------------------------------

// Where the pixels of a square of a tile lie that begins `border` pixels before the tile; `outside` for those beyond
// the image.
template <class T, int size>
inline void locate(T* images, const Shape& s, Group of, Index tile, Index border, T* outside,
                   T* (&pixels)[size][size]) {
  const Index tiles = s.tile_rows() * s.tile_columns();
  const Index top = tile % tiles / s.tile_columns() * 2 - border, left = tile % s.tile_columns() * 2 - border;
  T* image = images + tile / tiles * s.height * s.width * of.all + of.first;
  for (Index y = 0; y < size; ++y)
    for (Index x = 0; x < size; ++x) {
      const bool inside = top + y >= 0 && top + y < s.height && left + x >= 0 && left + x < s.width;
      pixels[y][x] = inside ? image + ((top + y) * s.width + left + x) * of.all : outside;
    }
}

// Values (16, kBlock, C') of some tiles at all points.
template <class T> class Points {
 public:
  explicit Points(Index channels)
      : row_(whole_vectors<T>(channels)),
        point_(kBlock * row_ + kLanes<T>),
        values_(kPoints * point_),
        zeros_(row_),
        lost_(row_) {
    std::fill_n(zeros_.data(), row_, T{});
  }

  Matrix<T> at(Index point) const { return {values_.data() + point * point_, row_}; }  // (kBlock, C')
  Matrix<const T> tiles_by_channels(Index point) const { return {at(point).values, row_, 1}; }
  Matrix<const T> channels_by_tiles(Index point) const { return {at(point).values, 1, row_}; }

  // The tiles `first` to `first + n` of images, whose squares of `size` pixels go to the points.
  template <int size, class F>
  void gather(const T* images, const Shape& s, Group of, Index border, Index first, Index n, F to_points) {
    for (Index t = 0; t < n; ++t) {
      const T* pixels[size][size];
      locate<const T, size>(images, s, of, first + t, border, zeros_.data(), pixels);
      for_channels<T>(of.count, [&](auto c) {
        Values<T> square[size][size], points[4][4];
        for (int y = 0; y < size; ++y)
          for (int x = 0; x < size; ++x) square[y][x] = load<T>(pixels[y][x] + c.first, c);
        transform(square, to_points, points);
        for (int point = 0; point < kPoints; ++point)
          store<T>(at(point).from(t, c.first).values, points[point / 4][point % 4], FullVector{});
      });
    }
  }

  // What the points make of the tiles `first` to `first + n` of images.
  void scatter(T* images, const Shape& s, Group of, Index first, Index n) {
    for (Index t = 0; t < n; ++t) {
      T* pixels[2][2];
      locate<T, 2>(images, s, of, first + t, 0, lost_.data(), pixels);
      for_channels<T>(of.count, [&](auto c) {
        Values<T> points[4][4], square[2][2];
        for (int point = 0; point < kPoints; ++point)
          points[point / 4][point % 4] = load<T>(at(point).from(t, c.first).values);
        transform(points, kPointsToOutput, square);
        for (int y = 0; y < 2; ++y)
          for (int x = 0; x < 2; ++x) store<T>(pixels[y][x] + c.first, square[y][x], c);
      });
    }
  }

 private:
  Index row_, point_;  // one vector more than a block: points whole pages apart would share a few sets of the cache
  Buffer<T> values_, zeros_, lost_;
};

// Some sets of kernels (16, rows, columns') at all points.
template <class T> class Kernels {
 public:
  Kernels(Index sets, Index rows, Index columns)
      : rows_(rows), row_(whole_vectors<T>(columns)), values_(sets * kPoints * rows_ * row_) {}

  Matrix<T> at(Index set, Index point) const {
    return {values_.data() + (set * kPoints + point) * rows_ * row_, row_};
  }
  Matrix<const T> read(Index set, Index point) const { return {at(set, point).values, row_}; }

 private:
  Index rows_, row_;
  Buffer<T> values_;
};

// ---- The convolution and its gradients ---------------------------------------------------------------------------

// The kernels of a group from one input channel to all output channels, at the points.
// Transposed, a kernel goes the other way: what is called an output is an input, and its window is turned around.
template <class T, bool transposed>
void kernels_to_points(const T* weight, const Shape& s, Index group, Index input, const Kernels<T>& kernels) {
  const Index of_input = transposed ? kTaps * s.outputs : 1, of_output = transposed ? 1 : kTaps * s.inputs;
  const Index of_tap = transposed ? s.outputs : s.inputs;
  const T* of_group = weight + group * s.inputs * s.outputs * kTaps + input * of_input;
  for_channels<T>(s.outputs, [&](auto c) {
    Values<T> g[3][3], points[4][4];
    for (Index tap = 0; tap < kTaps; ++tap) {
      T values[kLanes<T>] = {};
      const T* from = of_group + (transposed ? kTaps - 1 - tap : tap) * of_tap + c.first * of_output;
      for (Index lane = 0; lane < count<T>(c); ++lane) values[lane] = from[lane * of_output];
      g[tap / 3][tap % 3] = load<T>(values);
    }
    transform(g, kKernelToPoints, points);
    for (int point = 0; point < kPoints; ++point)
      store<T>(kernels.at(group, point).from(input, c.first).values, points[point / 4][point % 4], FullVector{});
  });
}

template <class T, bool transposed> void apply(const T* x, const T* weight, const Shape& s, T* y) {
  const Kernels<T> kernels(s.groups, s.inputs, s.outputs);
#pragma omp parallel
  {
    Points<T> in(s.inputs), out(s.outputs);
#pragma omp for schedule(static) collapse(2)
    for (Index group = 0; group < s.groups; ++group)
      for (Index input = 0; input < s.inputs; ++input)
        kernels_to_points<T, transposed>(weight, s, group, input, kernels);
#pragma omp for schedule(static) collapse(2)
    for (Index group = 0; group < s.groups; ++group)
      for (Index block = 0; block < s.blocks(); ++block) {
        const Index first = block * kBlock, n = std::min(kBlock, s.tiles() - first);
        in.template gather<4>(x, s, s.inputs_of(group), 1, first, n, kInputToPoints);
        for (Index point = 0; point < kPoints; ++point)
          multiply<T, false>(n, whole_vectors<T>(s.outputs), s.inputs, in.tiles_by_channels(point),
                             kernels.read(group, point), out.at(point));
        out.scatter(y, s, s.outputs_of(group), first, n);
      }
  }
}

// y (B, H, W, G*O) of x (B, H, W, G*I).
template <class T> void convolve(const T* x, const T* weight, const Shape& s, T* y) noexcept {
  apply<T, false>(x, weight, s, y);
}

// x_bar for y_bar: the convolution with the kernels transposed, in whose shape y_bar's channels are the inputs.
template <class T> void convolve_input_gradient(const T* y_bar, const T* weight, const Shape& s, T* x_bar) noexcept {
  apply<T, true>(y_bar, weight, s, x_bar);
}

template <class T> void convolve_weight_gradient(const T* x, const T* y_bar, const Shape& s, T* weight_bar) noexcept {
  const Index chunks = s.chunks();
  const Kernels<T> sums(chunks * s.groups, s.outputs, s.inputs);
#pragma omp parallel
  {
    Points<T> in(s.inputs), out(s.outputs);
#pragma omp for schedule(static) collapse(2)
    for (Index chunk = 0; chunk < chunks; ++chunk)
      for (Index group = 0; group < s.groups; ++group) {
        const Index begin = s.blocks() * chunk / chunks, end = s.blocks() * (chunk + 1) / chunks;
        for (Index block = begin; block < end; ++block) {
          const Index first = block * kBlock, n = std::min(kBlock, s.tiles() - first);
          in.template gather<4>(x, s, s.inputs_of(group), 1, first, n, kInputToPoints);
          out.template gather<2>(y_bar, s, s.outputs_of(group), 0, first, n, kOutputToPoints);
          const auto product = block == begin ? multiply<T, false> : multiply<T, true>;
          for (Index point = 0; point < kPoints; ++point)
            product(s.outputs, whole_vectors<T>(s.inputs), n, out.channels_by_tiles(point),
                    in.tiles_by_channels(point), sums.at(chunk * s.groups + group, point));
        }
      }
#pragma omp for schedule(static) collapse(2)
    for (Index group = 0; group < s.groups; ++group)
      for (Index output = 0; output < s.outputs; ++output)
        for_channels<T>(s.inputs, [&](auto c) {
          Values<T> points[4][4] = {}, g[3][3];
          for (Index chunk = 0; chunk < chunks; ++chunk)
            for (int point = 0; point < kPoints; ++point)
              points[point / 4][point % 4] +=
                  load<T>(sums.at(chunk * s.groups + group, point).from(output, c.first).values);
          transform(points, kPointsToKernel, g);
          T* to = weight_bar + (group * s.outputs + output) * kTaps * s.inputs + c.first;
          for (Index tap = 0; tap < kTaps; ++tap) store<T>(to + tap * s.inputs, g[tap / 3][tap % 3], c);
        });
  }
}

}  // namespace

extern "C" {
KSHOT_EXPORT(convolve)
KSHOT_EXPORT(convolve_input_gradient)
KSHOT_EXPORT(convolve_weight_gradient)
}
