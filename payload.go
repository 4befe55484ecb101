package tidings

import (
	"encoding"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"math"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"
)

// payloadPlan is what reflection found about a payload type at Define, so that
// publishing and handling need no search.
type payloadPlan struct {
	root *payloadNode
	// shares: a copy of the struct would share slices, maps or pointers.
	shares bool
	// sensitive: a field of it is.
	sensitive bool
}

type payloadKind int

const (
	fixedKind payloadKind = iota // bool, integers
	floatKind
	stringKind
	timeKind
	textKind // marshals itself as text
	bytesKind
	pointerKind
	sliceKind
	mapKind
	structKind
)

type payloadNode struct {
	kind    payloadKind
	typ     reflect.Type
	size    int
	shares  bool
	element *payloadNode
	fields  []payloadField
}

type payloadField struct {
	index    int
	name     string
	embedded bool // its fields are in the object of the struct around it
	// sensitive: nobody but handlers sees the value.
	sensitive bool
	node      *payloadNode
}

// wireNames are the JSON names of a struct's fields, embedded ones included.
func (n *payloadNode) wireNames() (names []string) {
	for _, f := range n.fields {
		if f.embedded {
			names = append(names, f.node.wireNames()...)
		} else {
			names = append(names, f.name)
		}
	}
	return names
}

var (
	timeType            = reflect.TypeFor[time.Time]()
	rawMessageType      = reflect.TypeFor[json.RawMessage]()
	errorType           = reflect.TypeFor[error]()
	jsonMarshalerType   = reflect.TypeFor[json.Marshaler]()
	jsonUnmarshalerType = reflect.TypeFor[json.Unmarshaler]()
	textMarshalerType   = reflect.TypeFor[encoding.TextMarshaler]()
	textUnmarshalerType = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// planPayload checks that a payload type is serializable primitive data. The
// error is one sentence with the path of the field and the fix.
func planPayload(t reflect.Type) (*payloadPlan, error) {
	if t.Kind() != reflect.Struct || t == timeType || marshalsText(t) {
		return nil, fmt.Errorf("the payload %v must be a struct, because on the wire it is a JSON object", t)
	}
	root, err := planNode(t, t.Name(), nil, false)
	if err != nil {
		return nil, err
	}
	return &payloadPlan{root: root, shares: root.shares, sensitive: root.hasSensitive()}, nil
}

// planNode plans one type; pointed says that a pointer leads to it.
func planNode(t reflect.Type, path string, above []reflect.Type, pointed bool) (*payloadNode, error) {
	refuse := func(what, fix string) (*payloadNode, error) {
		return nil, fmt.Errorf("payload field %s is %s: %s", path, what, fix)
	}
	for _, a := range above {
		if a == t {
			return refuse(fmt.Sprintf("%v, which contains itself", t), "use ids to refer to others")
		}
	}
	node := &payloadNode{typ: t, size: int(t.Size())}
	switch {
	case t == timeType:
		node.kind = timeKind
		return node, nil
	case t == rawMessageType:
		return refuse("json.RawMessage", "declare a struct with the fields that handlers need")
	case t.Implements(errorType) || reflect.PointerTo(t).Implements(errorType):
		return refuse(fmt.Sprintf("%v, an error", t), "carry its text as a string")
	case marshalsText(t):
		if embedsText(t) {
			return refuse(fmt.Sprintf("%v, which embeds a type that marshals itself as text: the rest of it would vanish silently", t), "give the embedded type a name")
		}
		if !t.Implements(textMarshalerType) && !pointed {
			return refuse(fmt.Sprintf("%v, which marshals as text through a pointer only", t), fmt.Sprintf("use *%v", t))
		}
		node.kind, node.shares = textKind, textShares(t)
		return node, nil
	case t.Kind() != reflect.Pointer && (t.Implements(jsonMarshalerType) || reflect.PointerTo(t).Implements(jsonMarshalerType) || reflect.PointerTo(t).Implements(jsonUnmarshalerType)):
		return refuse(fmt.Sprintf("%v, which makes its own JSON", t), "let it implement encoding.TextMarshaler and TextUnmarshaler instead, or use a plain type")
	}
	switch t.Kind() {
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return node, nil
	case reflect.Float32, reflect.Float64:
		node.kind = floatKind
		return node, nil
	case reflect.String:
		node.kind = stringKind
		return node, nil
	case reflect.Pointer:
		if t.Elem().Kind() == reflect.Pointer {
			return refuse(fmt.Sprintf("%v, a pointer to a pointer", t), "one pointer makes a field optional")
		}
		element, err := planNode(t.Elem(), path, above, true)
		if err != nil {
			return nil, err
		}
		node.kind, node.element, node.shares = pointerKind, element, true
		return node, nil
	case reflect.Slice:
		node.shares = true
		if t.Elem().Kind() == reflect.Uint8 && !marshalsText(t.Elem()) {
			node.kind = bytesKind
			return node, nil
		}
		element, err := planNode(t.Elem(), path+"[]", above, false)
		if err != nil {
			return nil, err
		}
		node.kind, node.element = sliceKind, element
		return node, nil
	case reflect.Map:
		if t.Key().Kind() != reflect.String || marshalsText(t.Key()) {
			return refuse(fmt.Sprintf("a map with %v keys", t.Key()), "use string keys")
		}
		element, err := planNode(t.Elem(), path+"{}", above, false)
		if err != nil {
			return nil, err
		}
		node.kind, node.element, node.shares = mapKind, element, true
		return node, nil
	case reflect.Struct:
		return planStruct(node, path, append(above, t))
	case reflect.Interface:
		return refuse(fmt.Sprintf("%v, an interface", t), "use one concrete type per field")
	case reflect.Array:
		return refuse(fmt.Sprintf("%v, an array", t), "use a slice, or a type that marshals as text")
	}
	return refuse(fmt.Sprintf("a %v (%v)", t.Kind(), t), "use primitive data and ids")
}

func planStruct(node *payloadNode, path string, above []reflect.Type) (*payloadNode, error) {
	node.kind = structKind
	t := node.typ
	if method := behaviour(t); method != "" {
		return nil, fmt.Errorf("payload field %s is %v, whose method %s can change it, as an entity does: carry its id or a plain struct", path, t, method)
	}
	names := map[string]string{}
	for i := range t.NumField() {
		f := t.Field(i)
		fieldPath := path + "." + f.Name
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case !f.IsExported():
			return nil, fmt.Errorf("payload field %s is unexported and would vanish silently: export it or remove it", fieldPath)
		case f.Tag.Get("json") == "-":
			return nil, fmt.Errorf("payload field %s is tagged json:\"-\" and would vanish silently: remove it", fieldPath)
		case f.Anonymous && name == "" && f.Type.Kind() != reflect.Struct:
			return nil, fmt.Errorf("payload field %s is an embedded %v: give it a name", fieldPath, f.Type)
		}
		sensitive, problem := sensitiveTag(f.Tag)
		if problem != "" {
			return nil, fmt.Errorf("payload field %s %s", fieldPath, problem)
		}
		child, err := planNode(f.Type, fieldPath, above, false)
		if err != nil {
			return nil, err
		}
		wireNames := []string{name}
		if name == "" {
			wireNames[0] = f.Name
		}
		embedded := f.Anonymous && name == "" && child.kind == structKind
		if embedded {
			wireNames = child.wireNames()
		}
		for _, wireName := range wireNames {
			// encoding/json reads names without regard to case.
			folded := strings.ToLower(wireName)
			if other, taken := names[folded]; taken {
				return nil, fmt.Errorf("payload fields %s and %s have the JSON name %q both: one would vanish silently, rename it", other, fieldPath, wireName)
			}
			names[folded] = fieldPath
		}
		if name == "" {
			name = f.Name
		}
		node.fields = append(node.fields, payloadField{index: i, name: name, embedded: embedded, sensitive: sensitive, node: child})
		node.shares = node.shares || child.shares
	}
	return node, nil
}

// behaviour returns a method that can change its receiver, or "".
func behaviour(t reflect.Type) string {
	pointer := reflect.PointerTo(t)
	for i := range pointer.NumMethod() {
		name := pointer.Method(i).Name
		if _, onValue := t.MethodByName(name); onValue {
			continue
		}
		switch name {
		case "UnmarshalJSON", "UnmarshalText", "UnmarshalBinary", "Scan", "String", "GoString", "Validate":
		default:
			return name
		}
	}
	return ""
}

func marshalsText(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer || t.Kind() == reflect.Interface {
		return false
	}
	pointer := reflect.PointerTo(t)
	return pointer.Implements(textMarshalerType) && pointer.Implements(textUnmarshalerType)
}

// embedsText reports whether a struct has its text from a type that it embeds.
func embedsText(t reflect.Type) bool {
	if t.Kind() != reflect.Struct {
		return false
	}
	for i := range t.NumField() {
		if f := t.Field(i); f.Anonymous && (f.Type == timeType || f.Type.Implements(textMarshalerType) || marshalsText(f.Type)) {
			return true
		}
	}
	return false
}

// textShares reports whether a copy of a text value may share memory: a
// decimal holds a pointer to its digits, a UUID is an array.
func textShares(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Bool, reflect.String, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		return false
	case reflect.Array:
		return textShares(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if textShares(t.Field(i).Type) {
				return true
			}
		}
		return false
	}
	return true
}

// clone replaces what v shares by copies, in place.
func (p *payloadPlan) clone(v reflect.Value) { cloneNode(p.root, v) }

func cloneNode(n *payloadNode, v reflect.Value) {
	if !n.shares {
		return
	}
	switch n.kind {
	case structKind:
		for _, f := range n.fields {
			cloneNode(f.node, v.Field(f.index))
		}
	case pointerKind:
		if v.IsNil() {
			return
		}
		fresh := reflect.New(n.element.typ)
		fresh.Elem().Set(v.Elem())
		cloneNode(n.element, fresh.Elem())
		v.Set(fresh)
	case bytesKind, sliceKind:
		if v.IsNil() {
			return
		}
		fresh := reflect.MakeSlice(n.typ, v.Len(), v.Len())
		reflect.Copy(fresh, v)
		if n.element != nil && n.element.shares {
			for i := range fresh.Len() {
				cloneNode(n.element, fresh.Index(i))
			}
		}
		v.Set(fresh)
	case mapKind:
		if v.IsNil() {
			return
		}
		fresh := reflect.MakeMapWithSize(n.typ, v.Len())
		for entries := v.MapRange(); entries.Next(); {
			value := reflect.New(n.element.typ).Elem()
			value.Set(entries.Value())
			cloneNode(n.element, value)
			fresh.SetMapIndex(entries.Key(), value)
		}
		v.Set(fresh)
	case textKind:
		// Its memory is its own business, so it is copied the way it travels. A
		// value that cannot be is refused by inspect before anyone sees it.
		text, err := textOf(v)
		if err != nil {
			return
		}
		fresh := reflect.New(n.typ)
		if readText(fresh, text) == nil {
			v.Set(fresh.Elem())
		}
	}
}

// inspect returns the payload's size in bytes and why it cannot be published.
func (p *payloadPlan) inspect(v reflect.Value) (int, error) { return inspectNode(p.root, v) }

func inspectNode(n *payloadNode, v reflect.Value) (int, error) {
	switch n.kind {
	case floatKind:
		if f := v.Float(); math.IsNaN(f) || math.IsInf(f, 0) {
			return 0, fmt.Errorf("is %v, which JSON cannot say", f)
		}
	case stringKind:
		s := v.String()
		if !utf8.ValidString(s) {
			return 0, fmt.Errorf("is not UTF-8, JSON would change it: use []byte for binary data")
		}
		return n.size + len(s), nil
	case timeKind:
		if year := v.Addr().Interface().(*time.Time).Year(); year < 0 || year > 9999 {
			return 0, fmt.Errorf("is in the year %d, which JSON cannot say", year)
		}
	case textKind:
		if n.typ.Kind() != reflect.Array { // an array of bytes, such as a UUID, cannot fail
			text, err := textOf(v)
			if err != nil {
				return 0, fmt.Errorf("does not marshal: %w", err)
			}
			return n.size + len(text), nil
		}
	case bytesKind:
		return n.size + v.Len(), nil
	case pointerKind:
		if v.IsNil() {
			return n.size, nil
		}
		size, err := inspectNode(n.element, v.Elem())
		return n.size + size, err
	case sliceKind:
		size := n.size
		if n.element.kind == fixedKind {
			return size + v.Len()*n.element.size, nil
		}
		for i := range v.Len() {
			inner, err := inspectNode(n.element, v.Index(i))
			if err != nil {
				return 0, fmt.Errorf("[%d] %w", i, err)
			}
			size += inner
		}
		return size, nil
	case mapKind:
		size := n.size
		for entries := v.MapRange(); entries.Next(); {
			key := entries.Key().String()
			if !utf8.ValidString(key) {
				return 0, fmt.Errorf("has a key that is not UTF-8")
			}
			value := reflect.New(n.element.typ).Elem()
			value.Set(entries.Value())
			inner, err := inspectNode(n.element, value)
			if err != nil {
				return 0, fmt.Errorf("[%q] %w", key, err)
			}
			size += len(key) + inner + 16
		}
		return size, nil
	case structKind:
		size := 0
		for i := range n.fields {
			f := &n.fields[i]
			if f.node.kind == fixedKind {
				size += f.node.size
				continue
			}
			inner, err := inspectNode(f.node, v.Field(f.index))
			if err != nil && f.sensitive {
				return 0, fmt.Errorf(".%s cannot be written as JSON; it is sensitive, so no more is said", f.name)
			}
			if err != nil {
				return 0, fmt.Errorf(".%s %w", f.name, err)
			}
			size += inner
		}
		return size, nil
	}
	return n.size, nil
}

// digestSeed makes digests of values comparable within this process only; a
// driver of values never compares them with another's.
var digestSeed = maphash.MakeSeed()

func (p *payloadPlan) digest(v reflect.Value) uint64 {
	var h maphash.Hash
	h.SetSeed(digestSeed)
	digestNode(p.root, v, &h)
	return h.Sum64()
}

func digestNode(n *payloadNode, v reflect.Value, h *maphash.Hash) {
	switch n.kind {
	case stringKind:
		h.WriteString(v.String())
		h.WriteByte(0xff) // never inside UTF-8
	case timeKind:
		t := v.Addr().Interface().(*time.Time)
		maphash.WriteComparable(h, t.UnixNano())
	case textKind:
		if text, err := textOf(v); err == nil {
			h.Write(text)
		}
		h.WriteByte(0xff)
	case bytesKind:
		maphash.WriteComparable(h, v.Len())
		h.Write(v.Bytes())
	case pointerKind:
		if v.IsNil() {
			h.WriteByte(0)
			return
		}
		h.WriteByte(1)
		digestNode(n.element, v.Elem(), h)
	case sliceKind:
		maphash.WriteComparable(h, v.Len())
		for i := range v.Len() {
			digestNode(n.element, v.Index(i), h)
		}
	case mapKind:
		var sum uint64 // the same in any order
		for entries := v.MapRange(); entries.Next(); {
			var inner maphash.Hash
			inner.SetSeed(digestSeed)
			inner.WriteString(entries.Key().String())
			inner.WriteByte(0xff)
			value := reflect.New(n.element.typ).Elem()
			value.Set(entries.Value())
			digestNode(n.element, value, &inner)
			sum += inner.Sum64()
		}
		maphash.WriteComparable(h, sum)
	case structKind:
		for i := range n.fields {
			digestNode(n.fields[i].node, v.Field(n.fields[i].index), h)
		}
	case floatKind:
		maphash.WriteComparable(h, v.Float())
	default:
		switch {
		case v.CanInt():
			maphash.WriteComparable(h, v.Int())
		case v.CanUint():
			maphash.WriteComparable(h, v.Uint())
		case v.Kind() == reflect.Bool:
			maphash.WriteComparable(h, v.Bool())
		}
	}
}

// textOf and readText call methods of the application, whose panics are errors.
func textOf(v reflect.Value) (text []byte, err error) {
	defer recoverInto(&err)
	return v.Addr().Interface().(encoding.TextMarshaler).MarshalText()
}

func readText(pointer reflect.Value, text []byte) (err error) {
	defer recoverInto(&err)
	return pointer.Interface().(encoding.TextUnmarshaler).UnmarshalText(text)
}
