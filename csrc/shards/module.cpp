// The Python module of the shard reader. Links to no torch: a cache can be read with NumPy alone.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bits.h"
#include "buffer.h"
#include "crc32c.h"
#include "reader.h"
#include "sorted_ids.h"
#include "xxh3.h"

namespace py = pybind11;
using namespace ensdistill::shards;
using Ids = py::array_t<int64_t, py::array::c_style>;
using Bytes = py::array_t<uint8_t, py::array::c_style>;

namespace {

py::object where(const std::optional<Damage>& damage) {
  return damage ? py::object(py::make_tuple(damage->shard, damage->begin, damage->end)) : py::object(py::none());
}

void require(bool sound, const char* what) {
  if (!sound) throw py::value_error(what);
}

py::array_t<uint32_t> checksums(const py::buffer& data, int64_t block_bytes) {
  const py::buffer_info info = data.request();
  require(info.ndim == 1 && info.itemsize == 1 && (info.size == 0 || info.strides[0] == 1) && block_bytes > 0, "data: expected plain bytes");
  const auto* bytes = static_cast<const uint8_t*>(info.ptr);
  py::array_t<uint32_t> out((info.size + block_bytes - 1) / block_bytes);
  uint32_t* sums = out.mutable_data();
  py::gil_scoped_release release;
  for (int64_t at = 0; at < info.size; at += block_bytes) *sums++ = crc32c(bytes + at, std::min<int64_t>(block_bytes, info.size - at));
  return out;
}

// rows: uint8 [N, width], of any width, 0 too.
py::array_t<uint64_t> row_hashes(const py::array_t<uint8_t, py::array::c_style>& rows, uint64_t seed) {
  require(rows.ndim() == 2, "rows: expected uint8 [N, width]");
  py::array_t<uint64_t> out(rows.shape(0));
  const uint8_t* data = rows.data();
  uint64_t* to = out.mutable_data();
  const auto count = static_cast<size_t>(rows.shape(0)), width = static_cast<size_t>(rows.shape(1));
  py::gil_scoped_release release;
  xxh3_rows(data, count, width, seed, to);
  return out;
}

py::array_t<uint8_t> pack_rows(const py::array_t<int32_t, py::array::c_style>& values, int bits) {
  require(values.ndim() == 2 && bits >= 1 && bits <= 32, "values: expected int32 [N, k] and 1 to 32 bits");
  const py::ssize_t n = values.shape(0), k = values.shape(1), bytes = packed_bytes(k, bits);
  py::array_t<uint8_t> out({n, bytes});
  for (py::ssize_t i = 0; i < n; ++i) pack(values.data(i, 0), k, bits, out.mutable_data() + i * bytes);
  return out;
}

// packed: a strided view of records is read in place.
py::array_t<int32_t> unpack_rows(const py::array_t<uint8_t>& packed, py::ssize_t k, int bits) {
  require(packed.ndim() == 2 && bits >= 1 && bits <= 32 && k >= 0, "packed: expected uint8 [N, bytes] and 1 to 32 bits");
  require(packed.shape(1) == static_cast<py::ssize_t>(packed_bytes(k, bits)) && (packed.shape(1) < 2 || packed.strides(1) == 1),
          "packed: expected as many bytes as the numbers take, side by side");
  py::array_t<int32_t> out({packed.shape(0), k});
  for (py::ssize_t i = 0; i < packed.shape(0); ++i) unpack(packed.data(i, 0), k, bits, out.mutable_data() + i * k);
  return out;
}

SortedIds sorted_ids(py::ssize_t count, int64_t classes, int width) {
  require(count >= 1 && classes >= 1 && classes <= INT32_MAX && width >= 0 && width <= 16,
          "expected at least one id, C below 2^31, codes of 0 to 16 bits");
  return {static_cast<size_t>(count), classes, width};
}

// ids: int32 [N, k], in ascending order in each row. codes: int32 [N, k].
py::array_t<uint8_t> pack_sorted(const py::array_t<int32_t, py::array::c_style>& ids, const py::array_t<int32_t, py::array::c_style>& codes,
                                 int64_t classes, int width) {
  require(ids.ndim() == 2 && codes.ndim() == 2 && ids.shape(0) == codes.shape(0) && ids.shape(1) == codes.shape(1),
          "ids, codes: expected int32 [N, k]");
  const py::ssize_t n = ids.shape(0), k = ids.shape(1);
  const SortedIds layout = sorted_ids(k, classes, width);
  py::array_t<uint8_t> out({n, static_cast<py::ssize_t>(layout.bytes())});
  std::fill_n(out.mutable_data(), out.size(), uint8_t{0});
  for (py::ssize_t i = 0; i < n; ++i) {
    const int32_t* row = ids.data(i, 0);
    for (py::ssize_t j = 0; j < k; ++j)
      require(row[j] >= 0 && row[j] < classes && (!j || row[j] >= row[j - 1]), "ids: expected ids of the classes in ascending order");
    layout.pack(row, codes.data(i, 0), out.mutable_data() + i * static_cast<py::ssize_t>(layout.bytes()));
  }
  return out;
}

// packed: a strided view of records is read in place.
std::pair<py::array_t<int32_t>, py::array_t<int32_t>> unpack_sorted(const py::array_t<uint8_t>& packed, py::ssize_t k, int64_t classes, int width) {
  const SortedIds layout = sorted_ids(k, classes, width);
  require(packed.ndim() == 2 && packed.shape(1) == static_cast<py::ssize_t>(layout.bytes()) && (packed.shape(1) < 2 || packed.strides(1) == 1),
          "packed: expected as many bytes as the ids and codes take, side by side");
  py::array_t<int32_t> ids({packed.shape(0), k}), codes({packed.shape(0), k});
  for (py::ssize_t i = 0; i < packed.shape(0); ++i) {
    require(layout.unpack(packed.data(i, 0), ids.mutable_data() + i * k, codes.mutable_data() + i * k),
            "packed: expected ids of the classes in ascending order");
  }
  return {ids, codes};
}

}  // namespace

PYBIND11_MODULE(_shards, m) {
  m.doc() = "Shard reader of ensdistill's target cache; use ensdistill.cache.";
  m.def("crc32c_implementation", &crc32c_implementation);
  m.def("checksums", &checksums, py::arg("data"), py::arg("block_bytes"), "CRC-32C of each block, uint32 [blocks].");
  m.def("crc32c_software", [](const py::bytes& data) {
    const std::string_view view = data;
    return crc32c_software(reinterpret_cast<const uint8_t*>(view.data()), view.size());
  });
  m.def("row_hashes", &row_hashes, py::arg("rows").noconvert(), py::arg("seed"), "XXH3 (64 bits, seeded) of each row's bytes, uint64 [N].");
  m.def("pack", &pack_rows, py::arg("values"), py::arg("bits"));
  m.def("unpack", &unpack_rows, py::arg("packed"), py::arg("count"), py::arg("bits"));
  m.def(
      "sorted_bytes", [](py::ssize_t count, int64_t classes, int width) { return sorted_ids(count, classes, width).bytes(); }, py::arg("count"),
      py::arg("classes"), py::arg("width"));
  m.def("pack_sorted", &pack_sorted, py::arg("ids"), py::arg("codes"), py::arg("classes"), py::arg("width"));
  m.def("unpack_sorted", &unpack_sorted, py::arg("packed"), py::arg("count"), py::arg("classes"), py::arg("width"));

  py::class_<Buffer>(m, "Buffer", py::buffer_protocol(), "Recycled memory; its views keep it alive.")
      .def(py::init<size_t>())
      .def_buffer([](Buffer& b) { return py::buffer_info(b.data(), 1, "B", 1, {b.bytes()}, {1}); });

  py::class_<Reader>(m, "Reader")
      .def(py::init<int64_t, int64_t, int64_t, int64_t, bool, int>(), py::arg("record_bytes"), py::arg("shard_rows"), py::arg("shards"),
           py::arg("block_bytes"), py::arg("sequences"), py::arg("threads"))
      .def(
          "missing", [](const Reader& r, const Ids& ids) { return r.missing(ids.data(), ids.size()); }, py::arg("ids"))
      .def(
          "map",
          [](Reader& r, int64_t shard, int fd, int64_t file_bytes, int64_t data_begin, int64_t records, int64_t rows,
             const py::array_t<uint32_t, py::array::c_style>& sums) {
            std::vector<uint32_t> checksums(sums.data(), sums.data() + sums.size());
            py::gil_scoped_release release;
            auto damage = r.map(shard, fd, {file_bytes, data_begin, records, rows}, std::move(checksums));
            py::gil_scoped_acquire acquire;
            return where(damage);
          },
          py::arg("shard"), py::arg("fd"), py::arg("file_bytes"), py::arg("data_begin"), py::arg("records"), py::arg("rows"), py::arg("checksums"),
          "None, or (shard, begin, end) of the bytes that are not as they were written.")
      .def("unmap_all", &Reader::unmap_all, py::call_guard<py::gil_scoped_release>())
      .def("mapped", &Reader::mapped)
      .def(
          "lengths",
          [](const Reader& r, const Ids& ids) {
            Ids out(ids.size());
            r.lengths(ids.data(), ids.size(), out.mutable_data());
            return out;
          },
          py::arg("ids"))
      .def(
          "gather",
          [](Reader& r, const Ids& ids, Bytes& out) {
            uint8_t* to = out.mutable_data();  // refuses a read-only array
            const int64_t bytes = out.size();
            std::optional<Damage> damage;
            {
              py::gil_scoped_release release;
              damage = r.gather(ids.data(), ids.size(), to, bytes);
            }
            return where(damage);
          },
          py::arg("ids"), py::arg("out").noconvert(), "None, or (shard, begin, end) of the bytes that are not as they were written.");
}
