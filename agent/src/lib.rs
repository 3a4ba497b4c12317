//! The agent: deploys, measures, attests, and moves its host through a flip.
