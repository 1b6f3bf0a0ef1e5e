//! When what is due: time and keys in, items out. Knows no clock and no terminal.

use std::time::Duration;

use super::timeline::Timed;

/// How far the arrows go.
const STEP: Duration = Duration::from_secs(5);
const LEAP: Duration = Duration::from_secs(60);
const SLOWEST: f64 = 0.125;
const FASTEST: f64 = 128.0;

/// What a key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Pause or go on.
    Pause,
    /// A step forward.
    Forward,
    /// A step back.
    Back,
    /// A leap forward.
    LeapForward,
    /// A leap back.
    LeapBack,
    /// Faster.
    Faster,
    /// Slower.
    Slower,
    /// Stop.
    Quit,
}

/// What a key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing on the screen.
    None,
    /// Items from here on are to be shown at once.
    Skip {
        /// First.
        from: usize,
        /// One behind the last.
        to: usize,
    },
    /// The screen is to be made anew from the items before this one.
    Redraw {
        /// One behind the last.
        to: usize,
    },
    /// The end.
    Quit,
}

/// The state of a replay.
#[derive(Debug)]
pub struct Player {
    items: Vec<Timed>,
    next: usize,
    /// Where the waiting for the next item began.
    anchor: Duration,
    /// How much of that waiting is over, in recording time.
    waited: Duration,
    idle_limit: Duration,
    speed: f64,
    paused: bool,
}

impl Player {
    /// At the start.
    #[must_use]
    pub fn new(items: Vec<Timed>, speed: f64, idle_limit: Duration) -> Self {
        Self {
            items,
            next: 0,
            anchor: Duration::ZERO,
            waited: Duration::ZERO,
            idle_limit,
            speed,
            paused: false,
        }
    }

    /// All items.
    #[must_use]
    pub fn items(&self) -> &[Timed] {
        &self.items
    }

    /// Where it ends.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.items.last().map_or(Duration::ZERO, |timed| timed.at)
    }

    /// Nothing is left.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.next >= self.items.len()
    }

    /// Where it is.
    #[must_use]
    pub fn position(&self) -> Duration {
        (self.anchor + self.waited).min(self.length())
    }

    /// The pause before the next item, as it is played.
    fn pause(&self) -> Option<Duration> {
        let next = self.items.get(self.next)?;
        Some(next.at.saturating_sub(self.anchor).min(self.idle_limit))
    }

    /// How long until the next item, by the clock on the wall; none while paused or at the end.
    #[must_use]
    pub fn next_in(&self) -> Option<Duration> {
        if self.paused {
            return None;
        }
        Some(self.pause()?.saturating_sub(self.waited).div_f64(self.speed))
    }

    /// Time has passed; gives the range of items that are due.
    pub fn tick(&mut self, elapsed: Duration) -> std::ops::Range<usize> {
        let first = self.next;
        if !self.paused {
            // A machine that slept for a week must not overflow.
            self.waited = self
                .waited
                .saturating_add(Duration::from_secs_f64(elapsed.as_secs_f64().min(1e6) * self.speed));
            while let Some(pause) = self.pause() {
                if self.waited < pause {
                    break;
                }
                self.waited -= pause;
                self.anchor = self.items.get(self.next).map_or(self.anchor, |timed| timed.at);
                self.next += 1;
            }
        }
        first..self.next
    }

    /// Goes to a place.
    pub fn seek(&mut self, to: Duration) -> Effect {
        let to = to.min(self.length());
        let from = self.next;
        self.next = self.items.partition_point(|timed| timed.at <= to);
        (self.anchor, self.waited) = (to, Duration::ZERO);
        if self.next >= from {
            Effect::Skip { from, to: self.next }
        } else {
            Effect::Redraw { to: self.next }
        }
    }

    /// A key was pressed.
    pub fn key(&mut self, key: Key) -> Effect {
        match key {
            Key::Quit => return Effect::Quit,
            Key::Pause => self.paused = !self.paused,
            Key::Faster => self.speed = (self.speed * 2.0).min(FASTEST.max(self.speed)),
            Key::Slower => self.speed = (self.speed / 2.0).max(SLOWEST.min(self.speed)),
            Key::Forward => return self.seek(self.position() + STEP),
            Key::LeapForward => return self.seek(self.position() + LEAP),
            Key::Back => return self.seek(self.position().saturating_sub(STEP)),
            Key::LeapBack => return self.seek(self.position().saturating_sub(LEAP)),
        }
        Effect::None
    }
}

#[cfg(test)]
mod tests {
    use super::{super::timeline::Item, *};

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Items at 0 s, 1 s, 2 s, 60 s.
    fn player(speed: f64) -> Player {
        let items = [0, 1000, 2000, 60_000]
            .map(|at| Timed { at: ms(at), item: Item::Output(at.to_string()) })
            .to_vec();
        Player::new(items, speed, ms(3000))
    }

    #[test]
    fn in_its_own_time_with_short_pauses() {
        let mut player = player(1.0);
        assert_eq!(player.next_in(), Some(ms(0)));
        assert_eq!(player.tick(ms(0)), 0..1);
        assert_eq!(player.next_in(), Some(ms(1000)));
        assert_eq!(player.tick(ms(400)), 1..1);
        assert_eq!(player.next_in(), Some(ms(600)));
        assert_eq!(player.tick(ms(1600)), 1..3);
        assert_eq!(player.next_in(), Some(ms(3000)), "58 s of silence are cut to 3");
        assert_eq!(player.tick(ms(3000)), 3..4);
        assert!(player.is_over() && player.next_in().is_none());
    }

    #[test]
    fn speed_and_pause() {
        let mut player = player(2.0);
        player.tick(ms(0));
        assert_eq!(player.next_in(), Some(ms(500)));
        assert_eq!(player.key(Key::Faster), Effect::None);
        assert_eq!(player.next_in(), Some(ms(250)));
        player.key(Key::Pause);
        assert_eq!(player.next_in(), None);
        assert_eq!(player.tick(ms(10_000)), 1..1, "nothing moves while paused");
        player.key(Key::Pause);
        assert_eq!(player.tick(ms(250)), 1..2);
    }

    #[test]
    fn seeking() {
        let mut player = player(1.0);
        player.tick(ms(0));
        assert_eq!(player.key(Key::Forward), Effect::Skip { from: 1, to: 3 });
        assert_eq!(player.position(), ms(5000));
        assert_eq!(player.key(Key::LeapForward), Effect::Skip { from: 3, to: 4 });
        assert!(player.is_over());
        assert_eq!(player.key(Key::LeapBack), Effect::Redraw { to: 1 });
        assert_eq!(player.position(), ms(0));
        assert_eq!(player.next_in(), Some(ms(1000)));
        assert_eq!(player.key(Key::Quit), Effect::Quit);
    }

    #[test]
    fn an_empty_recording() {
        let mut player = Player::new(Vec::new(), 1.0, ms(1));
        assert!(player.is_over());
        assert_eq!(player.tick(ms(100)), 0..0);
        assert_eq!(player.seek(ms(100)), Effect::Skip { from: 0, to: 0 });
    }
}
