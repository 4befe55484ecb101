package tidings_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/memory"
)

// panicOf returns what f panics with, as text.
func panicOf(f func()) (text string) {
	defer func() {
		if v := recover(); v != nil {
			text = fmt.Sprint(v)
		}
	}()
	f()
	return ""
}

type entity struct {
	ID string `json:"id"`
}

func (e *entity) Rename(string) {}

type ownJSON struct{ A string }

func (ownJSON) MarshalJSON() ([]byte, error) { return nil, nil }

type recursive struct {
	Children []recursive `json:"children"`
}

func define[P any]() string {
	return panicOf(func() { tidings.Define[P]("a.b.c", 1, tidings.Once) })
}

func TestPayloadPurity(t *testing.T) {
	type inner struct {
		Tags map[string]string `json:"tags"`
		At   *time.Time        `json:"at,omitempty"`
	}
	type good struct {
		ID      uuid.UUID       `json:"id"`
		N       int64           `json:"n,string"`
		F       float64         `json:"f"`
		Raw     []byte          `json:"raw"`
		Inner   inner           `json:"inner"`
		List    []inner         `json:"list"`
		Wait    time.Duration   `json:"wait"`
		Level   time.Month      `json:"level"`
		Matrix  [][]int         `json:"matrix"`
		Options map[string]bool `json:"options"`
	}
	if text := define[good](); text != "" {
		t.Errorf("a pure payload is refused: %s", text)
	}
	if text := define[struct{}](); text != "" {
		t.Errorf("an empty payload is refused: %s", text)
	}
	for name, test := range map[string]struct{ got, want string }{
		"any":         {define[struct{ A any }](), ".A is interface {}, an interface: use one concrete type"},
		"nested func": {define[struct{ A []struct{ F func() } }](), ".A[].F is a func (func()): use primitive data"},
		"chan":        {define[struct{ C chan int }](), ".C is a chan"},
		"array":       {define[struct{ A [3]int }](), ".A is [3]int, an array: use a slice"},
		"error":       {define[struct{ E error }](), ".E is error, an error: carry its text"},
		"unexported":  {define[struct{ a int }](), ".a is unexported and would vanish silently: export it"},
		"ignored": {define[struct {
			A int `json:"-"`
		}](), `.A is tagged json:"-"`},
		"entity":      {define[struct{ U entity }](), "whose method Rename can change it, as an entity does: carry its id"},
		"pointer":     {define[struct{ U *entity }](), "whose method Rename"},
		"own JSON":    {define[struct{ A ownJSON }](), "which makes its own JSON"},
		"raw message": {define[struct{ A json.RawMessage }](), "json.RawMessage"},
		"int keys":    {define[struct{ M map[int]string }](), "a map with int keys: use string keys"},
		"recursive":   {define[recursive](), "contains itself: use ids"},
		"two names": {define[struct {
			A int `json:"x"`
			B int `json:"X"`
		}](), `have the JSON name "X" both`},
		"not a struct":       {define[map[string]string](), "must be a struct"},
		"pointer to pointer": {define[struct{ A **int }](), "a pointer to a pointer"},
		"complex":            {define[struct{ A complex128 }](), ".A is a complex128"},
	} {
		if !strings.Contains(test.got, test.want) {
			t.Errorf("%s: %q does not say %q", name, test.got, test.want)
		}
	}
}

type p1 struct {
	A int `json:"a"`
}
type p2 struct {
	A int `json:"a"`
	B int `json:"b"`
}
type p3 struct {
	A string `json:"a"`
	B int    `json:"b"`
	C int    `json:"c"`
}

func TestDefineRefuses(t *testing.T) {
	v1 := tidings.Define[p1]("a.b.c", 1, tidings.Once)
	to2 := func(p p1) (p2, error) { return p2{A: p.A}, nil }
	other := tidings.Define[p1]("a.b.other", 1, tidings.Once)
	for name, test := range map[string]struct {
		f    func()
		want string
	}{
		"two segments":       {func() { tidings.Define[p1]("user.created", 1, tidings.Once) }, "module.aggregate.action"},
		"upper case":         {func() { tidings.Define[p1]("identity.User.created", 1, tidings.Once) }, "module.aggregate.action"},
		"empty segment":      {func() { tidings.Define[p1]("identity..created", 1, tidings.Once) }, "module.aggregate.action"},
		"no occurrence":      {func() { tidings.Define[p1]("a.b.c", 1, 0) }, "say tidings.Once"},
		"version 0":          {func() { tidings.Define[p1]("a.b.c", 0, tidings.Once) }, "version must be 1 or higher"},
		"silent version 2":   {func() { tidings.Define[p2]("a.b.c", 2, tidings.Once) }, "does not say how version 1 is read"},
		"gap":                {func() { tidings.Define[p2]("a.b.c", 3, tidings.Once, tidings.From(v1, to2)) }, "gap: it reads version 1 but not version 2"},
		"other event":        {func() { tidings.Define[p2]("a.b.c", 2, tidings.Once, tidings.From(other, to2)) }, "another event"},
		"wrong result":       {func() { tidings.Define[p3]("a.b.c", 2, tidings.Once, tidings.From(v1, to2)) }, "makes tidings_test.p2, the payload is tidings_test.p3"},
		"readable from more": {func() { tidings.Define[p1]("a.b.c", 1, tidings.Once, tidings.ReadableFrom(2)) }, "ReadableFrom(2)"},
		"once within":        {func() { tidings.Define[p1]("a.b.c", 1, tidings.Repeatable, tidings.OnceWithin(time.Hour)) }, "OnceWithin is for"},
		"channel":            {func() { tidings.Define[p1]("a.b.c", 1, tidings.Once, tidings.Channel("A B")) }, `Channel("A B")`},
		"aggregate": {func() {
			tidings.Define[p1]("a.b.c", 1, tidings.Once, tidings.AggregateFrom(func(p2) string { return "" }))
		}, "AggregateFrom reads"},
	} {
		if got := panicOf(test.f); !strings.Contains(got, test.want) {
			t.Errorf("%s: %q does not say %q", name, got, test.want)
		}
	}
	v2 := tidings.Define[p2]("a.b.c", 2, tidings.Once, tidings.From(v1, to2))
	tidings.Define[p3]("a.b.c", 3, tidings.Once, tidings.From(v2, func(p p2) (p3, error) { return p3{A: fmt.Sprint(p.A)}, nil }))
	tidings.Define[p2]("a.b.c", 7, tidings.Once, tidings.ReadsFrom(3))
	tidings.Define[p2]("a.b.c", 7, tidings.Once, tidings.ReadsFrom(7))
}

type forged struct {
	tidings.Event[p1]
}

func (forged) Type() string        { return "other.module.event" }
func (forged) AggregateID() string { return "forged" }

func TestPublishRefusesBadEvents(t *testing.T) {
	type odd struct {
		F float64           `json:"f"`
		S []string          `json:"s"`
		M map[string]string `json:"m"`
	}
	contract := tidings.Define[odd]("a.b.odd", 1, tidings.Repeatable)
	b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard()})
	start(t, b)
	for name, test := range map[string]struct {
		event tidings.DomainEvent
		want  string
	}{
		"no aggregate":  {contract.New("", odd{}), "the aggregate id is empty"},
		"NaN":           {contract.New("a", odd{F: math.NaN()}), ".f is NaN, which JSON cannot say"},
		"not UTF-8":     {contract.New("a", odd{S: []string{"ok", "\xff"}}), ".s [1] is not UTF-8"},
		"map key":       {contract.New("a", odd{M: map[string]string{"\xff": ""}}), "a key that is not UTF-8"},
		"nil":           {nil, "the event is empty"},
		"zero":          {tidings.Event[odd]{}, "the event is empty"},
		"long id":       {contract.New("a", odd{}, tidings.WithID(strings.Repeat("x", 257))), "257 bytes, at most 256"},
		"year":          {contract.New("a", odd{}, tidings.At(time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC))), "year 12000"},
		"zero contract": {(tidings.Contract[odd]{}).New("a", odd{}), "the contract is not defined"},
	} {
		err := b.Publish(t.Context(), contract.New("fine", odd{}), test.event)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v does not say %q", name, err, test.want)
		}
		var failed *tidings.PublishError
		if !errors.As(err, &failed) || len(failed.Unsent()) != 2 {
			t.Errorf("%s: %v does not say that nothing was stored", name, err)
		}
	}
	if err := b.Module("billing").Publish(t.Context(), contract.New("a", odd{})); !errors.Is(err, tidings.ErrForeignEvent) || !strings.Contains(err.Error(), `module "a" owns`) {
		t.Errorf("foreign event: %v", err)
	}
	// Embedding an event forges nothing: the bus sees the real one.
	one := tidings.Define[p1]("a.b.c", 1, tidings.Once)
	if err := b.Module("other").Publish(t.Context(), forged{one.New("x", p1{})}); !errors.Is(err, tidings.ErrForeignEvent) {
		t.Errorf("a forged event is published: %v", err)
	}
}

func TestEventIsImmutable(t *testing.T) {
	type list struct {
		Tags []string          `json:"tags"`
		Map  map[string][]int  `json:"map"`
		Ptr  *int              `json:"ptr"`
		Many []map[string]*int `json:"many"`
	}
	n := 1
	payload := list{Tags: []string{"a"}, Map: map[string][]int{"k": {1}}, Ptr: &n, Many: []map[string]*int{{"z": &n}}}
	e := tidings.Define[list]("a.b.list", 1, tidings.Once).New("x", payload)
	payload.Tags[0], payload.Map["k"][0], n = "changed", 9, 9
	got := e.Payload()
	if got.Tags[0] != "a" || got.Map["k"][0] != 1 || *got.Ptr != 1 || *got.Many[0]["z"] != 1 {
		t.Errorf("the event changed with the payload it was made from: %+v", got)
	}
	if e.OccurredAt().Location() != time.UTC || e.OccurredAt().Nanosecond()%1e6 != 0 {
		t.Errorf("occurredAt %v is not UTC in milliseconds", e.OccurredAt())
	}
	child := numberChosen.New("y", numberPayload{}, tidings.CausedBy(e))
	grandchild := numberChosen.New("z", numberPayload{}, tidings.CausedBy(child))
	if child.CausationID() != e.ID() || child.CorrelationID() != e.ID() || grandchild.CausationID() != child.ID() || grandchild.CorrelationID() != e.ID() {
		t.Errorf("causation %v %v", child, grandchild)
	}
}
