package outbox

import (
	"hash/crc32"
	"io"
	"strconv"
	"strings"
)

// SlotOf returns the slot of an aggregate's rows: the CRC-32 (IEEE) of channel, a
// zero byte and aggregate id, modulo [Slots]. It is part of the stored format.
func SlotOf(channel, aggregateID string) int {
	h := crc32.NewIEEE()
	_, _ = io.WriteString(h, channel)
	_, _ = h.Write([]byte{0})
	_, _ = io.WriteString(h, aggregateID)
	return int(h.Sum32() % Slots)
}

// LeaseName is the name of a slot's lease for a relay: its number. It is part of
// the stored format.
func LeaseName(slot int) string { return strconv.Itoa(slot) }

// Part is one slot of one channel of a [Log]. Each has positions of its own, and of
// each subscription one instance at a time has it, so that what an instance knows
// nothing of waits for another.
type Part struct {
	Channel string
	Slot    int
}

// PartOf returns the part in which an aggregate's rows lie.
func PartOf(channel, aggregateID string) Part { return Part{channel, SlotOf(channel, aggregateID)} }

// Parts are all parts of a channel, by slot.
func Parts(channel string) []Part {
	parts := make([]Part, Slots)
	for slot := range parts {
		parts[slot] = Part{channel, slot}
	}
	return parts
}

// Name is what a part is called as a source, and what its lease is called:
// "channel/slot". It is part of the stored format.
func (p Part) Name() string { return p.Channel + "/" + strconv.Itoa(p.Slot) }

// PartNamed is the part of a name, and whether it is one.
func PartNamed(name string) (part Part, ok bool) {
	at := strings.LastIndexByte(name, '/')
	if at < 0 {
		return Part{}, false
	}
	slot, err := strconv.Atoi(name[at+1:])
	part = Part{name[:at], slot}
	return part, err == nil && slot >= 0 && slot < Slots && part.Name() == name
}
