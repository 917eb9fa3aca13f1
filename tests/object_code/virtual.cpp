// A class with a vtable, which the object-code test must find. The library has none.
namespace fulmen {

struct Polymorphic {
  virtual ~Polymorphic();
};
Polymorphic::~Polymorphic() = default;

}  // namespace fulmen
