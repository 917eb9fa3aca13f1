// Checkpoint files in the format of Python's torch.save: checkpoint::write(path, value),
// checkpoint::read(path).
#pragma once

#include <fulmen/compiled.hpp>

#include <ATen/core/ivalue.h>

#include <filesystem>

#if FULMEN_BODIES
#include <fulmen/checkpoint/atomic_file.hpp>
#include <fulmen/checkpoint/pickle.hpp>
#include <fulmen/checkpoint/storage_range.hpp>
#include <fulmen/checkpoint/unpickle.hpp>
#include <fulmen/checkpoint/zip.hpp>

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>
#endif

namespace fulmen::checkpoint {

/// Writes a value so that Python's torch.load(path, weights_only=True) and read() below give it back.
///
/// Values: tensors, None, bool, int, double, complex, string, Device, and lists, tuples and dicts of them
/// (keys: strings, ints, doubles, bools), nested to a depth of 500. A string that is not UTF-8 is bytes in
/// Python; an undefined tensor is None. What occurs twice (a tensor, a container) is one object again when
/// read.
///
/// Tensors are written detached, from whatever device, and are on the CPU when read. Those that overlap in
/// memory still do after reading; of a storage, only the part that the value's tensors cover is written
/// (torch.save writes all of it). A tensor alone on its memory keeps its strides if it has no gaps
/// (channels_last, transposed), else it becomes contiguous. Overlapping tensors of different dtypes, 16- to
/// 64-bit unsigned integers, complex32 and 8-bit floats need PyTorch 2.1 to be read.
///
/// The file is written aside, flushed and renamed (see AtomicFile): a kill, a full disk or a power cut leaves
/// the previous file whole. Each record carries its CRC-32, which read() and any zip tool verify.
///
/// Errors: std::invalid_argument "cannot write checkpoint '<path>': <which value and why>" for what no
/// checkpoint holds; std::runtime_error "cannot write checkpoint '<path>': No space left on device" (and so
/// on) for the file.
void write(const std::filesystem::path& path, const c10::IValue& value);

/// Reads what write() or Python's torch.save wrote: the content that torch.load(weights_only=True) accepts,
/// but for sparse, quantized, nested and meta tensors. All tensors are on the CPU. Parameters are tensors
/// that require a gradient; OrderedDict and Counter are dicts, their attributes (a module's _metadata)
/// dropped; bytes are strings; torch.Size is a tuple; sets are lists; a dtype is an int
/// (IValue::toScalarType); a storage is a tensor of one dimension.
///
/// The file is not trusted: offsets, sizes and CRCs are checked, and nothing in it is run. Memory is within a
/// constant factor of the file's size.
///
/// Errors: std::runtime_error "cannot read checkpoint '<path>': <what was found, what was expected>".
c10::IValue read(const std::filesystem::path& path);

#if FULMEN_BODIES
namespace detail {

// One line of a LibTorch error, without its backtrace.
inline std::string one_line(const c10::Error& error) {
  std::string text = error.what_without_backtrace();
  text.resize(std::min(text.find('\n'), text.size()));
  return text;
}

// A message with names from an untrusted file in it, fit for a terminal: one line, not too long.
inline std::string printable(std::string text) {
  if (text.size() > 300) text = text.substr(0, 300) + "...";
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  }
  return text;
}

// What read() gives. Error: std::runtime_error "cannot read <kind> '<path>': <why>", in one line whatever it was.
template <class Read>
auto reading(const char* kind, const std::filesystem::path& path, Read&& read) {
  const at::NoGradGuard no_grad;
  std::string reason;
  try {
    return read();
  } catch (const c10::Error& error) {
    reason = one_line(error);
  } catch (const std::bad_alloc&) {
    reason = "out of memory";
  } catch (const std::exception& error) {
    reason = error.what();
  }
  throw std::runtime_error("cannot read " + std::string(kind) + " '" + path.string() + "': " + printable(reason));
}

// Decides what is written of each tensor's storage. It finds the tensors of a value, refuses what a
// checkpoint cannot hold, and then places them.
//
// torch.save writes every storage whole, so that a row of a huge matrix takes as much as the matrix. Here
// only what the value's tensors cover is written: tensors that overlap in memory go into one record and still
// overlap when they are read; tensors that do not, though they are views of one storage, get a record each.
class StoragePlan {
 public:
  // Bytes to be written: those of `tensor`, dense and in its own order. Copied from the device one record at
  // a time.
  struct Record {
    at::Tensor tensor;
    bool make_contiguous = false;
  };

  explicit StoragePlan(const c10::IValue& value) {
    collect(value, nullptr, 0);
    place_all();
  }

  const TensorPlaces& places() const { return places_; }
  const std::vector<Record>& records() const { return records_; }

 private:
  // The way from the whole value to a part of it, for messages; it lives on collect()'s stack.
  struct Path {
    const Path* parent;
    const c10::IValue* key;  // null: `index` counts
    std::size_t index;
  };

  struct Item {
    at::Tensor tensor;        // detached, conjugation and negation done
    const void* identity;     // of the tensor in the value
    std::uint64_t begin = 0;  // bytes of its storage that it covers
    std::uint64_t end = 0;
  };

  static std::string text(const Path* path) {
    if (path == nullptr) return "the value";
    std::string result;
    for (const Path* p = path; p != nullptr; p = p->parent) {
      std::string name = p->key == nullptr    ? std::to_string(p->index)
                         : p->key->isString() ? p->key->toStringRef()
                         : p->key->isInt()    ? std::to_string(p->key->toInt())
                                              : p->key->tagKind();
      result = result.empty() ? name : name + "." + result;
    }
    return "'" + result + "'";
  }

  // Gives how deep the value is nested, and finds its tensors.
  std::int32_t collect(const c10::IValue& value, const Path* path, std::int32_t depth) {
    if (value.isNone() || value.isBool() || value.isInt() || value.isDouble() || value.isComplexDouble() ||
        value.isString() || value.isDevice()) {
      return 0;
    }
    if (value.isTensor()) {
      collect_tensor(value.toTensor(), path);
      return 0;
    }
    if (!value.isGenericDict() && !value.isList() && !value.isTuple()) {
      throw std::invalid_argument(text(path) + " is a " + value.tagKind() +
                                  ", expected tensors, numbers, strings, None, lists, tuples and dicts");
    }
    const auto [known, fresh] = heights_.try_emplace(value.internalToPointer(), -1);
    if (!fresh) {
      if (known->second < 0) throw std::invalid_argument(text(path) + " is a container that contains itself");
      return known->second;
    }
    std::int32_t height = 0;
    const auto check_depth = [](std::int32_t levels) {
      if (levels > kMaxDepth) {
        throw std::invalid_argument("values are nested more than " + std::to_string(kMaxDepth) + " deep");
      }
    };
    check_depth(depth);
    const auto collect_item = [&](const c10::IValue& item, const Path& here) {
      height = std::max(height, collect(item, &here, depth + 1) + 1);
      check_depth(height);
    };
    if (value.isGenericDict()) {
      const c10::impl::GenericDict dict = value.toGenericDict();
      for (const auto& entry : dict) {
        const c10::IValue& key = entry.key();
        if (!key.isString() && !key.isInt() && !key.isDouble() && !key.isBool()) {
          throw std::invalid_argument(text(path) + " has a key that is a " + key.tagKind() +
                                      ", expected a string or a number");
        }
        collect_item(entry.value(), {path, &key, 0});
      }
    } else {
      const auto items =
          value.isList() ? value.toListRef() : c10::ArrayRef<c10::IValue>(value.toTupleRef().elements());
      for (std::size_t i = 0; i < items.size(); ++i) collect_item(items[i], {path, nullptr, i});
    }
    heights_[value.internalToPointer()] = height;
    return height;
  }

  void collect_tensor(const at::Tensor& tensor, const Path* path) {
    if (!tensor.defined()) return;
    const void* identity = tensor.unsafeGetTensorImpl();
    if (!seen_.insert(identity).second) return;
    if (tensor.layout() != c10::kStrided || tensor.is_quantized() || tensor.is_nested() ||
        !tensor.has_storage()) {
      throw std::invalid_argument(text(path) +
                                  " is a tensor that is sparse, quantized, nested or without a storage, "
                                  "expected a dense one");
    }
    if (tensor.is_meta()) {
      throw std::invalid_argument(text(path) + " is a tensor on the meta device, which holds no data");
    }
    if (dtype_name(tensor.scalar_type()).empty()) {
      throw std::invalid_argument(text(path) + " is a tensor of dtype " +
                                  c10::toString(tensor.scalar_type()) + ", which a checkpoint cannot hold");
    }
    Item item{.tensor = tensor.detach().resolve_conj().resolve_neg(), .identity = identity};
    const StorageRange range = storage_range(item.tensor);
    item.begin = range.begin;
    item.end = range.end;
    items_.push_back(std::move(item));
  }

  void place_all() {
    // Group by storage, keeping the order in which storages were first seen: records then are in the value's
    // order.
    std::unordered_map<const void*, std::size_t> groups_of;
    std::vector<std::vector<Item*>> groups;
    for (Item& item : items_) {
      const void* storage = item.tensor.storage().unsafeGetStorageImpl();
      // An empty tensor shares nothing.
      if (item.begin == item.end) {
        groups.push_back({&item});
        continue;
      }
      const auto [found, fresh] = groups_of.try_emplace(storage, groups.size());
      if (fresh) groups.emplace_back();
      groups[found->second].push_back(&item);
    }
    for (std::vector<Item*>& group : groups) {
      std::stable_sort(group.begin(), group.end(),
                       [](const Item* a, const Item* b) { return a->begin < b->begin; });
      for (std::size_t first = 0; first < group.size();) {
        std::uint64_t end = group[first]->end;
        std::size_t next = first + 1;
        for (; next < group.size() && group[next]->begin < end; ++next) end = std::max(end, group[next]->end);
        place(std::vector<Item*>(group.begin() + static_cast<std::ptrdiff_t>(first),
                                 group.begin() + static_cast<std::ptrdiff_t>(next)),
              end);
        first = next;
      }
    }
  }

  // Places tensors that overlap, sorted by where they begin, in one record.
  void place(const std::vector<Item*>& items, std::uint64_t end) {
    const at::Tensor& first = items.front()->tensor;
    const bool same_view = std::all_of(items.begin(), items.end(), [&](const Item* item) {
      return item->tensor.scalar_type() == first.scalar_type() && item->begin == items.front()->begin &&
             item->tensor.sizes() == first.sizes() && item->tensor.strides() == first.strides();
    });
    const bool same_dtype = std::all_of(items.begin(), items.end(), [&](const Item* item) {
      return item->tensor.scalar_type() == first.scalar_type();
    });
    const auto element = static_cast<std::uint64_t>(first.element_size());
    // Elements in between that no tensor of the value has (a column of a matrix): written without them,
    // unless several tensors with different views need them for their layout.
    const bool has_gaps =
        same_view && end - items.front()->begin > static_cast<std::uint64_t>(first.numel()) * element;
    // Python's torch.load gives one dtype to a storage, the first it meets: views of different dtypes need
    // the untyped form. The range then starts where an element of each dtype can.
    const bool untyped = !same_dtype || typed_dtype(first.scalar_type()) == nullptr;
    const std::uint64_t begin = same_dtype ? items.front()->begin : items.front()->begin / 16 * 16;

    Record record;
    std::int64_t bytes = 0;
    if (has_gaps || items.front()->begin == end) {
      bytes = first.numel() * static_cast<std::int64_t>(element);
      record = {first, has_gaps};
    } else {
      bytes = static_cast<std::int64_t>(end - begin);
      // The bytes as a tensor, so that any device copies them.
      record = {at::empty({0}, first.options().dtype(c10::kByte))
                    .set_(first.storage(), static_cast<std::int64_t>(begin), {bytes}, {1}),
                false};
    }
    for (const Item* item : items) {
      const auto size = static_cast<std::int64_t>(item->tensor.element_size());
      TensorPlace place{.storage = records_.size(),
                        .numel = untyped ? bytes : bytes / size,
                        .dtype = item->tensor.scalar_type(),
                        .untyped = untyped,
                        .offset = has_gaps || item->begin == item->end
                                      ? 0
                                      : static_cast<std::int64_t>(item->begin - begin) / size,
                        .sizes = item->tensor.sizes().vec(),
                        .strides = item->tensor.strides().vec()};
      if (has_gaps) {
        std::int64_t stride = 1;
        for (std::size_t d = place.sizes.size(); d-- > 0;
             stride *= std::max<std::int64_t>(place.sizes[d], 1)) {
          place.strides[d] = stride;
        }
      }
      places_.emplace(item->identity, std::move(place));
    }
    records_.push_back(std::move(record));
  }

  std::unordered_map<const void*, std::int32_t> heights_;  // of containers; -1 while collect() is inside
  std::unordered_set<const void*> seen_;                   // tensors
  std::vector<Item> items_;
  TensorPlaces places_;
  std::vector<Record> records_;
};

// What a file that is no zip archive is, and what to do about it.
inline std::string describe_foreign(const InputFile& file) {
  if (file.size() == 0) return "the file is empty, expected a checkpoint of torch.save";
  const std::string head = file.read(0, static_cast<std::size_t>(std::min<std::uint64_t>(file.size(), 512)));
  const std::string_view view(head);
  const auto has = [&](std::string_view magic, std::size_t at = 0) {
    return view.size() > at && view.substr(at, magic.size()) == magic;
  };
  // PROTO, then LONG1 0x1950a86a20f9469cfc6c.
  constexpr std::string_view kLegacyMagic("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 12);
  if (view.size() > 14 && view[0] == '\x80' && has(kLegacyMagic, 2)) {
    return "it is in the legacy format of torch.save (before PyTorch 1.6, or "
           "_use_new_zipfile_serialization=False): "
           "load it in Python and torch.save it again";
  }
  if (has("ustar", 257))
    return "it is a tar archive (PyTorch before 0.1.12?): load it in Python and torch.save it again";
  if (has("\x80") && view.size() > 1 && view[1] >= 2 && view[1] <= 5) {
    return "it is a plain Python pickle, not a checkpoint of torch.save";
  }
  if (view.size() > 8 && view[8] == '{')
    return "it looks like a safetensors file, not a checkpoint of torch.save";
  if (has("\x89HDF")) return "it is an HDF5 file (Keras?), not a checkpoint of torch.save";
  if (has("\x93NUMPY")) return "it is a NumPy array, not a checkpoint of torch.save";
  if (has("\x1f\x8b")) return "it is compressed with gzip: unpack it first";
  return "it is not a zip archive, expected a checkpoint of torch.save";
}

inline c10::IValue read_archive(const std::filesystem::path& path) {
  const InputFile file(path);
  if (file.size() < 4 || file.read(0, 4) != "PK\x03\x04") throw std::runtime_error(describe_foreign(file));
  const ZipReader records(file);
  if (records.contains("constants.pkl")) {
    throw std::runtime_error(
        "it is a TorchScript archive (torch.jit.save, or torch::save of C++): read it with "
        "torch::jit::load or torch::load");
  }
  if (!records.contains("data.pkl")) {
    throw std::runtime_error(records.contains_suffix(".npy")
                                 ? "it is a NumPy .npz archive, not a checkpoint of torch.save"
                                 : "it is a zip archive without data.pkl, not a checkpoint of torch.save");
  }
  if (records.contains("byteorder")) {
    if (const std::string order = records.read("byteorder"); order != "little") {
      throw std::runtime_error("its byte order is '" + order.substr(0, 16) + "', expected 'little'");
    }
  }
  const std::string pickle = records.read("data.pkl");
  return Unpickler(pickle, records).unpickle();
}

}  // namespace detail

FULMEN_INLINE void write(const std::filesystem::path& path, const c10::IValue& value) {
  const std::string prefix = "cannot write checkpoint '" + path.string() + "': ";
  const at::NoGradGuard no_grad;
  try {
    std::string pickle;
    std::vector<detail::StoragePlan::Record> storages;
    try {
      const detail::StoragePlan plan(value);
      pickle = detail::Pickler(plan.places()).pickle(value);
      storages = plan.records();
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(prefix + error.what());
    }

    AtomicFile file(path, "checkpoint");
    // The records and their order are those of torch.save.
    const std::string stem = path.stem().string();
    detail::ZipWriter zip(file, stem.empty() ? "archive" : stem);
    zip.add("data.pkl", pickle);
    zip.add(".format_version", "1");
    zip.add(".storage_alignment", std::to_string(detail::ZipWriter::kAlignment));
    zip.add("byteorder", "little");
    for (std::size_t i = 0; i < storages.size(); ++i) {
      const detail::StoragePlan::Record& record = storages[i];
      const at::Tensor bytes = (record.make_contiguous ? record.tensor.contiguous() : record.tensor).cpu();
      zip.add("data/" + std::to_string(i), bytes.const_data_ptr(), bytes.nbytes());
    }
    zip.add("version", "3\n");
    zip.finish();
    file.commit();
  } catch (const c10::Error& error) {
    throw std::runtime_error(prefix + detail::one_line(error));
  } catch (const std::bad_alloc&) {
    throw std::runtime_error(prefix + "out of memory");
  }
}

FULMEN_INLINE c10::IValue read(const std::filesystem::path& path) {
  return detail::reading("checkpoint", path, [&] { return detail::read_archive(path); });
}
#endif

}  // namespace fulmen::checkpoint
